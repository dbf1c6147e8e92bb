// mla_dense in training: every token attends to itself and everything earlier in its sequence, or
// to those of them in a mask, as mla_dense_backward takes it. On CPUs the operation that serves a
// model, with its bits; on CUDA all sequences in one launch, in tiles (mla_flash.cu), or by blocks
// of queries on the tensor cores (kernels/cuda/train_products.h).
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"
#include "kernels/mla_dense/mla_dense_backward.h"

namespace tamis {

struct MlaDenseTrainArgs {
  MlaSequence<float> in;
  float* out = nullptr;  // [tokens, heads, v_dim]
  // Where the sequences of `in` begin, and its tokens at the end; empty: it is one.
  std::span<const int64_t> begins = {};
  // [heads, tokens] or null: log2 of each row's sum of exponentials, for mla_dense_backward.
  // Written by cuda_flash alone; NaN after another version on a device.
  float* log_sum = nullptr;
  SelectionMask selected = {};  // the keys of each token; else all up to itself
};

void mla_dense_train(KernelContext& context, const MlaDenseTrainArgs& args);

}  // namespace tamis
