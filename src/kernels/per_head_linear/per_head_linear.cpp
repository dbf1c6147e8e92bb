#include "kernels/per_head_linear/per_head_linear.h"

#include "kernels/per_head_linear/per_head_linear_impl.h"
#include "kernels/simd/targets.h"

namespace tamis {
namespace {

constexpr Implementation<PerHeadLinearArgs> kList[] = {
    {"cuda", [](const PerHeadLinearArgs&) { return true; }, per_head_linear_cuda},
    {"simd", [](const PerHeadLinearArgs&) { return vectors_available(); }, per_head_linear_simd},
    {"reference", [](const PerHeadLinearArgs&) { return true; }, per_head_linear_reference},
};

}  // namespace

void per_head_linear(KernelContext& context, const PerHeadLinearArgs& args) {
  dispatch<PerHeadLinearArgs>(context, "per_head_linear", kList, args);
}

}  // namespace tamis
