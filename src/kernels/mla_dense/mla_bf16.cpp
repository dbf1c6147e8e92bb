#include "kernels/mla_dense/mla_bf16.h"

#include "kernels/mla_dense/mla_bf16_impl.h"

namespace tamis {
namespace {

constexpr Implementation<MlaTrainBf16Args> kTrain[] = {
    {"cuda_flash", [](const MlaTrainBf16Args& a) { return mla_bf16_flash_supports(a.in); },
     mla_train_bf16_flash},
};
constexpr Implementation<MlaBackwardBf16Args> kBackward[] = {
    {"cuda_flash", [](const MlaBackwardBf16Args& a) { return mla_bf16_flash_supports(a.in); },
     mla_backward_bf16_flash},
};

}  // namespace

bool mla_takes_bf16(const KernelContext& context, const MlaBf16Sequence& shape) {
  return context.backend() == Backend::kCuda && !context.allowed("matmul", "cuda") &&
         context.allowed("mla_dense_train", "cuda_flash") &&
         context.allowed("mla_dense_backward", "cuda_flash") && mla_bf16_flash_supports(shape);
}

void mla_train_bf16(KernelContext& context, const MlaTrainBf16Args& args) {
  dispatch<MlaTrainBf16Args>(context, "mla_train_bf16", kTrain, args);
}

void mla_backward_bf16(KernelContext& context, const MlaBackwardBf16Args& args) {
  dispatch<MlaBackwardBf16Args>(context, "mla_backward_bf16", kBackward, args);
}

}  // namespace tamis
