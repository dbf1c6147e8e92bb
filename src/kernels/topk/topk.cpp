#include "kernels/topk/topk.h"

#include "kernels/topk/topk_impl.h"

namespace tamis {
namespace {

constexpr Implementation<TopkArgs> kList[] = {
    {"cuda", [](const TopkArgs&) { return true; }, topk_cuda},
    {"simd", [](const TopkArgs&) { return true; }, topk_simd},
    {"reference", [](const TopkArgs&) { return true; }, topk_reference},
};

}  // namespace

void topk(KernelContext& context, const TopkArgs& args) {
  dispatch<TopkArgs>(context, "topk", kList, args);
}

}  // namespace tamis
