#include "kernels/topk/topk.h"

#include "kernels/topk/topk_impl.h"

namespace tamis {
namespace {

constexpr Implementation<TopkArgs> kList[] = {
    {"cpu", [](const TopkArgs&) { return true; }, topk_cpu},
    {"reference", [](const TopkArgs&) { return true; }, topk_reference},
};

}  // namespace

void topk(KernelContext& context, const TopkArgs& args) {
  dispatch<TopkArgs>(context, "topk", kList, args);
}

}  // namespace tamis
