// The implementations of topk.
#pragma once

#include "kernels/topk/topk.h"

namespace tamis {

bool topk_row_reference(const float* scores, int64_t length, int64_t k, int32_t* indices);
void topk_reference(KernelContext& context, const TopkArgs& args);
void topk_simd(KernelContext& context, const TopkArgs& args);

}  // namespace tamis
