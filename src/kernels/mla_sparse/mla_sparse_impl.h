// The implementations of mla_sparse.
#pragma once

#include "kernels/mla_sparse/mla_sparse.h"

namespace tamis {

void mla_sparse_reference(KernelContext& context, const MlaSparseArgs& args);

bool mla_sparse_cuda_supports(const MlaSparseArgs& args);
void mla_sparse_cuda(KernelContext& context, const MlaSparseArgs& args);
// Not `mass`: it needs the normalised weights of all heads.
bool mla_sparse_simd_supports(const MlaSparseArgs& args);
void mla_sparse_simd(KernelContext& context, const MlaSparseArgs& args);
// The part of mla_sparse_simd for `round_bf16`.
void mla_sparse_rounded_simd(KernelContext& context, const MlaSparseArgs& args);

}  // namespace tamis
