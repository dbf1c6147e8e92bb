// The implementations of mla_dense_backward, and the probabilities that the warm-up loss shares.
#pragma once

#include <vector>

#include "kernels/mla_dense/mla_dense_backward.h"
#include "kernels/mla_dense/mla_dense_train.h"

namespace tamis {

template <typename T>
void mla_dense_backward_reference(KernelContext& context, const MlaDenseBackwardArgs<T>& args);
void mla_dense_backward_blocked(KernelContext& context, const MlaDenseBackwardArgs<float>& args);
void mla_dense_backward_cuda(KernelContext& context, const MlaDenseBackwardArgs<float>& args);
// The same with `size` queries a block.
void mla_dense_backward_cuda_by(KernelContext& context, const MlaDenseBackwardArgs<float>& args,
                                int64_t size);
void mla_dense_train_cuda(KernelContext& context, const MlaDenseTrainArgs& args);
// mla_flash.cu: nothing of the scores is kept. Heads of at most 192 values, of v at most 128.
bool mla_flash_supports(const MlaSequence<float>& in);
void mla_dense_train_flash(KernelContext& context, const MlaDenseTrainArgs& args);
void mla_dense_backward_flash(KernelContext& context, const MlaDenseBackwardArgs<float>& args);

// P[t,h,0..t] in double: the specification.
template <typename T>
std::vector<double> mla_probabilities(const MlaSequence<T>& in, int64_t t, int64_t h,
                                      const SelectionMask& selected = {});

// Queries [begin, end) of a block; together their scores are at most about 8 million floats.
struct QueryBlock {
  int64_t begin, end;
  int64_t rows() const { return end - begin; }
};
// `rows_per_query` rows of scores, each as long as the block's last query sees.
int64_t query_block_size(int64_t tokens, int64_t rows_per_query);

// p [block, heads, block.end] <- softmax of the scores, 0 past each query's own position.
void mla_probabilities_blocked(KernelContext& context, const MlaSequence<float>& in,
                               const QueryBlock& block, float* p);

}  // namespace tamis
