// What attention reads in a pass: for chosen tokens of the batch, the context positions with the
// largest share in each layer, how far back the selected ones lie, and how much of the mass of
// dense attention they hold. The pass itself is left as it is, to the bit: attention is computed
// once more for these tokens alone.
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
  using Layers = std::vector<std::vector<Share>>;

  // Head-summed attention [position + 1] of one row, over the selection or over everything.
  const std::vector<float>& mass(KernelContext& context, const Row& row, MlaSparseArgs args,
                                 bool dense);
  void keep(size_t row, int64_t layer, const std::vector<float>& mass, int64_t heads);
  void measure(KernelContext& context, const Row& row, int64_t layer, const MlaSparseArgs& args);

  int64_t layers_;
  Place place_;
  std::vector<Row> rows_;
  std::vector<Layers> shares_;  // by row
  SelectionStats stats_;
  GrowBuffer<float> out_{place_}, mass_{place_};
  std::vector<float> host_;
  std::vector<int32_t> selected_;
};

}  // namespace tamis
