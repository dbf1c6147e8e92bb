// mla_sparse of one sequence in training: token t attends to the positions of row t of in.indices.
// On CPUs the operation that serves a model, with its bits; on CUDA by blocks of tokens over
// gathered rows on the tensor cores (kernels/cuda/train_products.h).
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/mla_sparse/mla_sparse_backward.h"

namespace tamis {

struct MlaSparseTrainArgs {
  MlaSparseBackwardArgs<float> in;  // its inputs without d_out
  float* out = nullptr;             // [tokens, heads, kv_lora]
  // Written on CUDA alone, if not null.
  float* log_sum = nullptr;  // [tokens, heads]: base 2, of the sums of exponentials
  float* target = nullptr;   // [tokens, k]: mla_sparse_target
};

void mla_sparse_train(KernelContext& context, const MlaSparseTrainArgs& args);

}  // namespace tamis
