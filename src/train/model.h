// Forward and backward of the model over a micro-batch of ragged sequences: losses, and the
// gradient of every trained tensor added to an array in the layout of the ParameterTable.
//
//   TrainModel<float> model(config, table);
//   StepResult r = model.run(context, {weights, gradients}, batch, objective);
//
// It mirrors src/model: attention.cpp has mla.cpp and indexer.cpp, ffn.cpp has moe.cpp, one
// backward function after each forward function. With T = double everything runs in plain loops,
// which is how whole layers are checked by finite differences.
//
// The two losses touch disjoint tensors. The language-model loss reaches the model's group and
// never the indexer: the selection carries no gradient. The indexer's KL reaches its own group
// alone: its inputs and its target are constants, so its gradients are made during the forward pass
// and nothing of it is kept.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "comm/group.h"
#include "kernels/context.h"
#include "kernels/indexer_kl/indexer_health.h"
#include "model/config.h"
#include "train/parameters.h"

namespace tamis {

// Sequences one after the other; each attends to itself alone.
struct MicroBatch {
  std::vector<int32_t> ids;
  std::vector<int32_t> targets;  // [tokens]: the next token, -1 for none
  std::vector<int64_t> begins;   // [sequences + 1]
  int64_t tokens() const { return static_cast<int64_t>(ids.size()); }
  int64_t sequences() const { return static_cast<int64_t>(begins.size()) - 1; }
};

enum class TrainAttention : uint8_t { kDense, kSparse };

struct Objective {
  TrainAttention attention = TrainAttention::kDense;
  int64_t topk = 0;  // kSparse
  // kSparse: in the expanded form over masked tiles of all keys, instead of absorbed over the
  // gathered rows of the selection. The same numbers but for rounding.
  bool masked = false;
  bool train_model = true;  // the language-model loss
  bool train_indexer =
      false;  // KL over everything (dense attention) or over the selection (sparse)
  // Forward alone, with losses and the most likely tokens: train_model and train_indexer are false.
  // With measure_topk the indexer's choice of that many is compared with dense attention.
  bool evaluate = false;
  int64_t measure_topk = 0;
  // Keeps the latents of attention instead of what is expanded from them, and of gathered rows not
  // what attention made of them in latent dimensions; the same bits.
  bool recompute = false;
  // Gathered rows: tokens of a block of sparse_attention.h; 0: as many as take about 1 GiB.
  int64_t latent_tokens = 0;
  // Linear layers and experts multiply factors rounded to FP8 (linear_layers.h).
  bool fp8 = false;
  // What the gradients are multiplied by: a mean over n tokens has 1 / n.
  double lm_scale = 1, kl_scale = 1, balance_scale = 0;
  double mtp_scale = 0;  // of the loss of multi-token prediction
};

struct StepResult {
  double lm_loss = 0;  // sum over targets
  int64_t targets = 0;
  int64_t right = 0;    // evaluate: targets that are the most likely token
  double mtp_loss = 0;  // sum over the targets of multi-token prediction
  int64_t mtp_targets = 0;
  // Layers count that of multi-token prediction, where the model has one.
  std::vector<double> kl;                  // [layers]: sum over tokens; empty without train_indexer
  std::vector<double> balance;             // [layers]: sum over sequences
  std::vector<std::vector<int64_t>> load;  // [layers][experts]: tokens routed to each
  std::vector<std::vector<double>> kl_rows;  // [layers][tokens]
  std::vector<IndexerHealth> health;         // [layers]; empty unless measured
};

// Tokens of a batch that have a target two tokens on.
int64_t mtp_targets(const MicroBatch& batch);

template <typename T>
struct TrainState;  // activations of one micro-batch
template <typename T>
struct MtpState;

template <typename T>
class TrainModel {
 public:
  // Keeps references to both.
  TrainModel(const ModelConfig& config, const ParameterTable& table);
  // One of several ranks that compute together (parallel.h), on CPUs: `config` and `table` are of
  // the rank. Every rank of a group calls run() with the same objective, those of `tensor` with the
  // same batch too. Null: no such group; both are kept.
  TrainModel(const ModelConfig& config, const ParameterTable& table, Group* experts, Group* tensor);
  ~TrainModel();

  struct Values {
    const T* weights = nullptr;  // [table.size()]
    // [table.size()], added to; biases have none. Unused by evaluate. With a group of experts
    // [table.experts().size()] more for each other rank of it, in their order: what this rank's
    // experts learn from that rank's batch.
    T* gradients = nullptr;
  };
  // InputError if an id is outside the vocabulary; UsageError if the objective needs an indexer
  // that the model does not have.
  StepResult run(KernelContext& context, const Values& values, const MicroBatch& batch,
                 const Objective& objective);

  // Bytes of activations that the runs so far hold for their backward passes, and of what layers
  // take turns with.
  int64_t activation_bytes() const;
  int64_t work_bytes() const;
  // Gives the memory of all runs back; the next one takes what it needs.
  void release();

 private:
  const ModelConfig& config_;
  const ParameterTable& table_;
  Group *experts_ = nullptr, *tensor_ = nullptr;
  std::unique_ptr<TrainState<T>> state_;
  std::unique_ptr<MtpState<T>> mtp_;
};

}  // namespace tamis
