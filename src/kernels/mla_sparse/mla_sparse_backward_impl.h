// The implementations of mla_sparse_backward and mla_sparse_target.
#pragma once

#include "kernels/mla_sparse/mla_sparse_backward.h"
#include "kernels/mla_sparse/mla_sparse_train.h"

namespace tamis {

template <typename T>
void mla_sparse_backward_reference(KernelContext& context, const MlaSparseBackwardArgs<T>& args);
void mla_sparse_backward_gathered(KernelContext& context, const MlaSparseBackwardArgs<float>& args);
void mla_sparse_backward_cuda(KernelContext& context, const MlaSparseBackwardArgs<float>& args);
// The same with `size` tokens a block.
void mla_sparse_backward_cuda_by(KernelContext& context, const MlaSparseBackwardArgs<float>& args,
                                 int64_t size);
void mla_sparse_train_cuda(KernelContext& context, const MlaSparseTrainArgs& args);
// Up to 16 heads (mla_sparse_few.cu).
bool mla_sparse_few_supports(const MlaSparseBackwardArgs<float>& args);
bool mla_sparse_many_supports(const MlaSparseBackwardArgs<float>& args);
void mla_sparse_backward_few(KernelContext& context, const MlaSparseBackwardArgs<float>& args);
// Up to 4,096 heads, made for many (mla_sparse_many.cu).
void mla_sparse_train_many(KernelContext& context, const MlaSparseTrainArgs& args);
void mla_sparse_target_many(KernelContext& context, const MlaSparseTargetArgs<float>& args);
void mla_sparse_backward_many(KernelContext& context, const MlaSparseBackwardArgs<float>& args);
void mla_sparse_train_few(KernelContext& context, const MlaSparseTrainArgs& args);
void mla_sparse_target_few(KernelContext& context, const MlaSparseTargetArgs<float>& args);

template <typename T>
void mla_sparse_target_reference(KernelContext& context, const MlaSparseTargetArgs<T>& args);
void mla_sparse_target_gathered(KernelContext& context, const MlaSparseTargetArgs<float>& args);
void mla_sparse_target_cuda(KernelContext& context, const MlaSparseTargetArgs<float>& args);

// How many entries of a row are positions.
inline int64_t selected_count(const int32_t* indices, int64_t k) {
  int64_t n = 0;
  while (n < k && indices[n] >= 0) ++n;
  return n;
}

}  // namespace tamis
