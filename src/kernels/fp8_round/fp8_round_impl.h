// The CUDA implementation of fp8_round.
#pragma once

#include "kernels/fp8_round/fp8_round.h"

namespace tamis {

inline constexpr float kFp8Largest = 448.0F;
inline constexpr float kLeastFp8Scale =
    0x1p-100F;                                // e4m3 goes on to 2^-9 of it, all normal in bf16
inline constexpr float kLeastWeight = 1e-4F;  // block_quant's floor under the largest value

void fp8_round_cuda(KernelContext& context, const Fp8RoundArgs<float>& args);

}  // namespace tamis
