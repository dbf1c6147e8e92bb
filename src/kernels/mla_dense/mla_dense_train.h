// mla_dense of one sequence in training: every token of `in` attends to itself and everything
// earlier, as mla_dense_backward takes it. On CPUs the operation that serves a model, with its
// bits; on CUDA by blocks of queries on the tensor cores (kernels/cuda/train_products.h).
#pragma once

#include <cstdint>

#include "kernels/context.h"
#include "kernels/mla_dense/mla_dense_backward.h"

namespace tamis {

struct MlaDenseTrainArgs {
  MlaSequence<float> in;
  float* out = nullptr;  // [tokens, heads, v_dim]
};

void mla_dense_train(KernelContext& context, const MlaDenseTrainArgs& args);

}  // namespace tamis
