// The model: a forward pass over a batch of ragged sequences with a paged cache.
//
//   text -> ids -> Batch -> Transformer::forward -> logits
//
// It reads like the paper: block.cpp has a layer, mla.cpp section 2.1.1 of the V3 report,
// indexer.cpp equation (1) of V3.2, moe.cpp section 2.1.2. Batch, chunk and thread count do not
// change a token's bits.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "base/function_ref.h"
#include "comm/group.h"
#include "kernels/context.h"
#include "kernels/sample/sample.h"
#include "model/activations.h"
#include "model/config.h"
#include "model/device_weights.h"
#include "model/kv_view.h"
#include "model/numerics.h"
#include "model/observer.h"
#include "model/selector.h"
#include "model/weights.h"

namespace tamis {

struct LayerContext;

// One sequence's tokens within a batch.
struct BatchSequence {
  int64_t first_token = 0, num_tokens = 0;
  // Attention in the expanded (MHA) form, for positions before expand_below: the native path's
  // prefill. Off, the absorbed form (MQA).
  bool expanded = false;
};

struct Batch {
  TokenMap tokens;               // tokens of one sequence are consecutive, positions ascending
  const int32_t* ids = nullptr;  // [tokens], each in [0, vocab_size)
  std::span<const BatchSequence> sequences;
  KvView kv;
  int64_t expand_below = -1;            // -1: the model's
  std::span<const int32_t> logit_rows;  // tokens whose logits are wanted
  float* logits = nullptr;              // out [logit_rows, vocab_size]; or null
  int32_t* best =
      nullptr;  // out [logit_rows]: id of the largest logit, the lowest of equals; or null
  // Device: with these, [logit_rows], `best` is the token drawn (kernels/sample/sample.h).
  std::span<const SampleRow> draws;
  std::span<const SampleEdit> edits;
  float* hidden = nullptr;  // out [tokens, hidden_size]: after the final norm; or null
  // out [sequences]: the first layer that produced a number that is not finite (num_layers: the
  // head), -1 if none. Such a sequence's logits mean nothing; the others' are untouched.
  int32_t* failed_layer = nullptr;
};

struct ModelOptions {
  Precision precision = Precision::kExact;
  // Wrong on purpose, for the negative controls of `tamis verify`.
  bool swap_index_rope = false;
  bool no_hadamard = false;
  // From this position on a prompt's tokens attend in the absorbed form, which reads the selected
  // entries alone. -1: on a device where both forms need as many products, on the CPU nowhere.
  // Where nothing is selected the expanded form needs fewer everywhere.
  int64_t expand_below = -1;
};

class Transformer {
 public:
  // Keeps references: checkpoint, weights and group must outlive it.
  Transformer(const ModelConfig& config, const ModelWeights& weights, Group& group,
              const ModelOptions& options);

  const ModelConfig& config() const { return config_; }
  Group& group() const { return group_; }
  const ModelOptions& options() const { return options_; }

  // Copies the weights to the context's device, once a device; nothing on the CPU. forward() does
  // it by itself; a command that calls it first can show the progress (bytes done, bytes in all).
  const ModelWeights& place(KernelContext& context,
                            FunctionRef<void(int64_t, int64_t)> progress) const;

  void forward(KernelContext& context, const Batch& batch, const Selector& selector,
               Activations& act, Observer* observer = nullptr) const;

  // The multi-token-prediction layer `index` over `batch` (ids are the NEXT tokens): hidden
  // [tokens, hidden] are the main model's states after its final norm. Writes the layer's own cache
  // entry (layer num_layers + index) and batch.logits for logit_rows.
  void forward_mtp(KernelContext& context, const Batch& batch, int64_t index, const float* hidden,
                   const Selector& selector, Activations& act, Observer* observer = nullptr) const;

 private:
  // The operations of a forward pass, from the staged ids to the logits.
  void walk(LayerContext& c, const ModelWeights& weights) const;
  const ModelWeights& weights_on(KernelContext& context) const;

  ModelConfig config_;
  const ModelWeights& weights_;
  Group& group_;
  ModelOptions options_;
  Numerics numerics_;
  std::vector<float> inv_freq_;
  mutable std::map<int, std::unique_ptr<DeviceWeights>> placed_;  // by device
};

}  // namespace tamis
