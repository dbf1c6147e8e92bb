// Every trained tensor of a model in one table, under its Hugging Face name, and where it lies in
// one array of values. Weights, gradients and both moments of the optimiser share that layout, so
// loading, saving, clipping and stepping are loops over the table.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "tensor/tensor.h"

namespace tamis {

// Who moves a tensor: the language-model loss, the indexer's own loss, or the balance rule of the
// router (a bias that has no gradient).
enum class ParameterGroup : uint8_t { kModel, kIndexer, kBias };

// How a fresh one starts: normal with the configuration's deviation, 1 or 0.
enum class ParameterStart : uint8_t { kNormal, kOne, kZero };

struct Parameter {
  std::string name;
  Shape shape;
  ParameterGroup group = ParameterGroup::kModel;
  ParameterStart start = ParameterStart::kNormal;
  int64_t offset = 0;  // of its first value
  int64_t size() const { return shape.elements(); }
};

// Offsets of the tensors of one layer; -1 where it has none.
struct IndexerSlots {
  int64_t wq_b = -1, wk = -1, k_norm_w = -1, k_norm_b = -1, weights_proj = -1;
};
struct MlpSlots {
  int64_t gate = -1, up = -1, down = -1;  // up begins where gate ends
};
struct LayerSlots {
  int64_t input_norm = -1, post_attention_norm = -1;
  int64_t q_a = -1, q_a_norm = -1, q_b = -1, kv_a = -1, kv_a_norm = -1, kv_b = -1, o = -1;
  IndexerSlots indexer;
  MlpSlots mlp;  // a dense layer's, or the shared expert's
  int64_t router = -1, router_bias = -1;
  std::vector<MlpSlots> experts;
};
// The module that predicts one more token, besides its layer.
struct MtpSlots {
  int64_t enorm = -1, hnorm = -1, eh_proj = -1, norm = -1;
};

// The routed experts of every layer that a rank keeps: `count` of them from `first` on.
struct ExpertShare {
  int64_t first = 0, count = 0;
};

class ParameterTable {
 public:
  // InputError if the model has something that is not trained here: an indexer shared between
  // layers, router scores by softmax, or more than one module of multi-token prediction.
  explicit ParameterTable(const ModelConfig& config);
  // Of a rank that keeps some experts alone, which follow everything else of the model's group.
  // LayerSlots::experts counts from share.first.
  ParameterTable(const ModelConfig& config, const ExpertShare& share);

  const std::vector<Parameter>& list() const { return list_; }
  // Of the model, and after them the layer of multi-token prediction if there is one.
  const std::vector<LayerSlots>& layers() const { return layers_; }
  const MtpSlots& mtp() const { return mtp_; }
  // Tensors of one group lie side by side: [begin, end) of the values.
  struct Range {
    int64_t begin = 0, end = 0;
    int64_t size() const { return end - begin; }
  };
  Range range(ParameterGroup group) const { return ranges_[static_cast<size_t>(group)]; }
  int64_t size() const { return list_.empty() ? 0 : ranges_[2].end; }
  // The values of all experts of a table with a share of them, side by side; else empty.
  Range experts() const { return experts_; }

  int64_t embed() const { return embed_; }
  int64_t head() const { return head_; }  // the embedding's if they are tied
  int64_t norm() const { return norm_; }

 private:
  class Builder;
  std::vector<Parameter> list_;
  std::vector<LayerSlots> layers_;
  MtpSlots mtp_;
  Range ranges_[3], experts_;
  int64_t embed_ = -1, head_ = -1, norm_ = -1;
};

}  // namespace tamis
