// What the warm-up loss shares with mla_dense_backward on CUDA.
#pragma once

#include "kernels/mla_dense/mla_dense_backward_impl.h"

namespace tamis {

// Queries of a block: `rows_per_query` rows of scores each, together about 256 MiB, 16 at least.
int64_t cuda_query_block(int64_t tokens, int64_t rows_per_query);

// Scratch memory for scores [heads, block, block.end].
float* score_scratch(KernelContext& context, int slot, const QueryBlock& block, int64_t heads);

// p [heads, block, block.end] <- softmax of the scores, 0 past each query's own position.
void mla_probabilities_cuda(KernelContext& context, const MlaSequence<float>& in,
                            const QueryBlock& block, float* p);

}  // namespace tamis
