// The implementations of mla_bf16.h, in mla_flash.cu.
#pragma once

#include "kernels/mla_dense/mla_bf16.h"

namespace tamis {

bool mla_bf16_flash_supports(const MlaBf16Sequence& in);
void mla_train_bf16_flash(KernelContext& context, const MlaTrainBf16Args& args);
void mla_backward_bf16_flash(KernelContext& context, const MlaBackwardBf16Args& args);

}  // namespace tamis
