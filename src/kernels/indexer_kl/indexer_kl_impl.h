// The implementations of indexer_kl.
#pragma once

#include "kernels/indexer_kl/indexer_kl.h"

namespace tamis {

template <typename T>
void indexer_kl_dense_reference(KernelContext& context, const IndexerKlDenseArgs<T>& args);
template <typename T>
void indexer_kl_sparse_reference(KernelContext& context, const IndexerKlSparseArgs<T>& args);
void indexer_kl_dense_cuda(KernelContext& context, const IndexerKlDenseArgs<float>& args);
void indexer_kl_sparse_cuda(KernelContext& context, const IndexerKlSparseArgs<float>& args);
// indexer_kl_flash.cu: scores in tiles, all sequences at once. Attention as mla_flash, index heads
// of at most 128 values.
bool indexer_kl_flash_supports(const IndexerKlDenseArgs<float>& args);
void indexer_kl_dense_flash(KernelContext& context, const IndexerKlDenseArgs<float>& args);
// The same with `size` queries a block.
void indexer_kl_dense_cuda_by(KernelContext& context, const IndexerKlDenseArgs<float>& args,
                              int64_t size);
void indexer_kl_sparse_cuda_by(KernelContext& context, const IndexerKlSparseArgs<float>& args,
                               int64_t size);
// Up to 16 heads (indexer_kl_few.cu).
bool indexer_kl_few_supports(const IndexerKlSparseArgs<float>& args);
void indexer_kl_sparse_few(KernelContext& context, const IndexerKlSparseArgs<float>& args);
// Up to 64 heads (indexer_kl_many.cu).
bool indexer_kl_many_supports(const IndexerKlSparseArgs<float>& args);
void indexer_kl_sparse_many(KernelContext& context, const IndexerKlSparseArgs<float>& args);
void indexer_kl_dense_blocked(KernelContext& context, const IndexerKlDenseArgs<float>& args);
void indexer_kl_sparse_gathered(KernelContext& context, const IndexerKlSparseArgs<float>& args);

// kl of one row, and score[s] <- scale * (softmax(score)[s] - p[s]). Sums in double.
template <typename T>
double kl_row(const T* p, int64_t n, double scale, T* score);

}  // namespace tamis
