// A batch where the operations run: on the CPU the caller's own arrays, on a device copies of them.
//
//   StagedBatch s(context, batch, vocab, act);    one upload: ids, positions, page tables, wanted
//   rows
//   ... operations on s.tokens, s.ids ...
//   s.finish(act);                         batch.logits and batch.failed_layer are there
#pragma once

#include "model/transformer.h"

namespace tamis {

class StagedBatch {
 public:
  StagedBatch(KernelContext& context, const Batch& batch, int64_t vocab, Activations& act);
  // Copies the results to the batch and waits for them. Nothing to do on the CPU.
  void finish(Activations& act);

  TokenMap tokens;
  const int32_t* ids = nullptr;         // [tokens]
  const int32_t* logit_rows = nullptr;  // [batch.logit_rows]
  float* logits = nullptr;
  int32_t* failed = nullptr;  // [batch.sequences], all -1 at the start

 private:
  void upload(Activations& act);

  KernelContext& context_;
  const Batch& batch_;
  int64_t logit_values_;
};

}  // namespace tamis
