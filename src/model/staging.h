// A batch where the operations run: on the CPU the caller's own arrays, on a device copies of them.
//
//   StagedBatch s(context, batch, vocab, act);    ids, positions, page tables, wanted rows are
//   packed s.start();                             and come to the device: first in a recorded step
//   ... operations on s.tokens, s.ids ...
//   s.check_logits(mark);                  last in a recorded step
//   s.finish();                            batch.logits, best and failed_layer are there
#pragma once

#include "kernels/sample/sample.h"
#include "kernels/step_io/step_io.h"
#include "model/transformer.h"

namespace tamis {

class StagedBatch {
 public:
  StagedBatch(KernelContext& context, const Batch& batch, int64_t vocab, Activations& act);
  void start() const;
  // Marks sequences whose logits are not all finite, and finds each row's token: the largest, or
  // the one drawn.
  void check_logits(int32_t mark) const;
  // Gives the results to the batch and waits for them.
  void finish() const;

  TokenMap tokens;
  const int32_t* ids = nullptr;         // [tokens]
  const int32_t* logit_rows = nullptr;  // [batch.logit_rows]
  const SampleRow* draws = nullptr;     // [batch.draws]
  float* logits = nullptr;
  int32_t* failed = nullptr;  // [batch.sequences], all -1 at the start

 private:
  void pack(Activations& act);
  void reserve(Activations& act, PinnedBuffer* buffer, int64_t bytes);
  void wait_for_step() const;
  int64_t rows() const { return static_cast<int64_t>(batch_.logit_rows.size()); }
  int64_t sequences() const { return static_cast<int64_t>(batch_.sequences.size()); }

  KernelContext& context_;
  const Batch& batch_;
  int64_t vocab_;
  StepInArgs in_;
  uint32_t number_ = 0;  // of the step, another one than the last
  // Pinned: the number of the step whose results are there, [rows] tokens, [sequences] marks, then
  // logits.
  uint32_t* done_ = nullptr;
  int32_t* best_ = nullptr;
};

}  // namespace tamis
