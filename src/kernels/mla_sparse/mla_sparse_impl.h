// The implementations of mla_sparse.
#pragma once

#include "kernels/mla_sparse/mla_sparse.h"

namespace tamis {

void mla_sparse_reference(KernelContext& context, const MlaSparseArgs& args);

// Neither `mass` nor `round_bf16`: both need the normalised weights, which the online softmax
// never has in hand.
bool mla_sparse_simd_supports(const MlaSparseArgs& args);
void mla_sparse_simd(KernelContext& context, const MlaSparseArgs& args);

}  // namespace tamis
