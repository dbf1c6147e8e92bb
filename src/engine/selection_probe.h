// What attention reads in a pass: for chosen tokens of the batch, the context positions with the
// largest share in each layer beside their share of dense attention, how far back the selected ones
// lie, and how much of dense attention they hold. The pass itself is left as it is, to the bit:
// attention is computed again for these tokens alone, over the selection and over everything.
//
//   probe.clear();
//   probe.add({row, position, /*top=*/8, /*recall=*/true});
//   model.forward(context, batch, selector, activations, &probe);
//   probe.reads(0);
#pragma once

#include <cstdint>
#include <vector>

#include "engine/token_reads.h"
#include "model/activations.h"
#include "model/observer.h"

namespace tamis {

class SelectionProbe final : public Observer {
 public:
  struct Row {
    int64_t token = 0;     // of the batch
    int32_t position = 0;  // of it in its sequence
    int64_t top = 0;       // positions to report; 0: none
    bool recall = false;   // counts in stats()
  };

  SelectionProbe(int64_t layers, DeviceContext* device);

  void clear();
  void add(const Row& row);
  size_t size() const { return rows_.size(); }
  // Of the i-th row, after the pass.
  TokenReads reads(size_t i) const;
  const SelectionStats& stats() const { return stats_; }

  bool wants_values() const override { return false; }
  void floats(std::string_view, int64_t, const float*, int64_t, int64_t) override {}
  void ints(std::string_view, int64_t, const int32_t*, int64_t, int64_t) override {}
  void attention(KernelContext& context, int64_t layer, const MlaSparseArgs& args) override;

 private:
  struct Share {
    int32_t position;
    float share;
  };
  using Shares = std::vector<Share>;  // of one layer, by position
  using Layers = std::vector<Shares>;

  // Of one row with top > 0: what each layer reads, what it would read densely, and what is kept.
  struct Found {
    Layers read, dense;
    std::vector<float> kept;
  };

  // Head-summed attention [position + 1] of one row, over the selection or over everything.
  const std::vector<float>& mass(KernelContext& context, const Row& row, MlaSparseArgs args,
                                 bool dense);
  // The shares above 0 that are not below `least`, of head-summed attention.
  static Shares shares_of(const std::vector<float>& mass, float heads, float least);
  static float share_at(const Shares& shares, int32_t position);  // 0 if it is not there
  void find_selected(KernelContext& context, const Row& row, const MlaSparseArgs& args);
  void count(const Row& row, int64_t layer, double kept);

  int64_t layers_;
  Place place_;
  std::vector<Row> rows_;
  std::vector<Found> found_;  // by row
  SelectionStats stats_;
  GrowBuffer<float> out_{place_}, mass_{place_};
  std::vector<float> host_;
  std::vector<int32_t> selected_;
};

}  // namespace tamis
