// The implementations of mla_sparse.
#pragma once

#include <vector>

#include "kernels/mla_sparse/mla_sparse.h"

namespace tamis {

void mla_sparse_reference(KernelContext& context, const MlaSparseArgs& args);
// The part of it for `int16`: token t attends to the positions `set`; rows [set, kv_lora + rope]
// are their latents.
void mla_sparse_int16_token(const MlaSparseArgs& args, int64_t t, const std::vector<int64_t>& set,
                            const std::vector<float>& rows);

bool mla_sparse_cuda_supports(const MlaSparseArgs& args);
void mla_sparse_cuda(KernelContext& context, const MlaSparseArgs& args);

// On the tensor cores: `round_bf16`, latents of 512 + 64 in bf16 or FP8, no `mass`. q is rounded to
// bf16 (the native path's already is).
bool mla_sparse_mma_supports(const MlaSparseArgs& args);
void mla_sparse_mma_cuda(KernelContext& context, const MlaSparseArgs& args);

// How its work is cut: heads of a block, whether chunks of a list are blocks of their own, whether
// the next rows are fetched ahead. Every plan gives the same bits; mla_sparse_mma_cuda takes the
// fastest, tests take all that the device has the shared memory for.
struct MlaMmaPlan {
  int heads = 64;
  bool split = false, staged = true;
};
std::vector<MlaMmaPlan> mla_sparse_mma_plans(KernelContext& context, const MlaSparseArgs& args);
void mla_sparse_mma_run(KernelContext& context, const MlaSparseArgs& args, const MlaMmaPlan& plan);

// Not `mass`: it needs the normalised weights of all heads.
bool mla_sparse_simd_supports(const MlaSparseArgs& args);
void mla_sparse_simd(KernelContext& context, const MlaSparseArgs& args);
// The part of mla_sparse_simd for `round_bf16`.
void mla_sparse_rounded_simd(KernelContext& context, const MlaSparseArgs& args);

}  // namespace tamis
