// The weights of a model, as views into its mapped checkpoint. Norms and biases, a few kilobytes a
// layer, are copied to float32; everything else stays where it lies in the file, in its own format.
//
// With a Group of N ranks, rank r holds its slices only: heads of q_b and kv_b, output rows of o,
// gate, up, down and the head, whole experts, rows of the embedding. Every output element is
// computed by one rank alone, so N ranks give the bits of one.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "comm/group.h"
#include "kernels/weight.h"
#include "model/config.h"

namespace tamis {

// A vector of a norm or a bias: float32 values on the host and, in a copy of the weights on a
// device, the same values there.
struct Parameters {
  Parameters() = default;
  Parameters(std::vector<float> v) : values(std::move(v)) {}  // NOLINT: they are the same thing

  // Where the operations read them.
  const float* data() const { return on_device != nullptr ? on_device : values.data(); }

  std::vector<float> values;
  const float* on_device = nullptr;
};

// One matrix of every expert.
struct ExpertTable {
  std::vector<Weight> weights;
  const Weight* on_device = nullptr;
};

struct IndexerWeights {
  Weight wq_b;                    // [index_heads * index_dim, q_lora]
  Weight wk;                      // [index_dim, hidden]
  Weight weights_proj;            // [index_heads, hidden]
  Parameters k_norm_w, k_norm_b;  // [index_dim]
};

struct AttentionWeights {
  Weight q_a;   // [q_lora, hidden]
  Weight q_b;   // [heads * (nope + rope), q_lora], this rank's heads
  Weight kv_a;  // [kv_lora + rope, hidden]
  Weight kv_b;  // [heads * (nope + v_head), kv_lora], this rank's heads
  Weight o;     // [hidden, heads * v_head], this rank's rows
  Parameters q_a_norm, kv_a_norm;
  std::optional<IndexerWeights> indexer;
};

struct MlpWeights {
  Weight gate, up;  // [intermediate, hidden], this rank's rows (all rows in a routed expert)
  Weight down;      // [hidden, intermediate], this rank's rows (all rows in a routed expert)
};

struct MoeWeights {
  Weight router;                    // [experts, hidden]
  Parameters bias;                  // e_score_correction_bias [experts]
  std::vector<MlpWeights> experts;  // this rank's: first_expert, first_expert + 1, ...
  ExpertTable gates, ups, downs;    // the same, matrix by matrix
  int64_t first_expert = 0;
  std::optional<MlpWeights> shared;
};

struct LayerWeights {
  Parameters input_norm, post_attention_norm;  // [hidden]
  AttentionWeights attention;
  MlpWeights mlp;  // dense layers
  MoeWeights moe;  // expert layers
};

// The multi-token-prediction layer; embedding and head are the main model's.
struct MtpWeights {
  Parameters enorm, hnorm, norm;  // [hidden]
  Weight eh_proj;                 // [hidden, 2 * hidden]
  LayerWeights layer;
};

struct ModelWeights {
  Weight embed;  // [vocabulary, hidden], this rank's rows
  int64_t first_vocab = 0;
  Weight head;  // the same rows
  Parameters norm;
  std::vector<LayerWeights> layers;
  std::vector<MtpWeights> mtp;
  // FP8 scales, checked (finite, > 0) and copied because files do not align them.
  std::list<std::vector<float>> scales;

  // InputError naming the tensor for anything missing, of another shape or of a type that a weight
  // cannot have; UsageError if the ranks do not divide the heads, experts or widths. The checkpoint
  // must outlive the weights. MTP layers are read only when asked for.
  static ModelWeights load(const Checkpoint& checkpoint, const ModelConfig& config,
                           const Group& group, bool with_mtp);

  // Whether a projection of attention, MLP or experts is I8 or I4.
  bool has_integers() const;
};

}  // namespace tamis
