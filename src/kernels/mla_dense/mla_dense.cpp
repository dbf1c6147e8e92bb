#include "kernels/mla_dense/mla_dense.h"

#include "kernels/mla_dense/mla_dense_impl.h"
#include "kernels/simd/targets.h"

namespace tamis {
namespace {

constexpr Implementation<MlaDenseArgs> kList[] = {
    {"cuda_mma", mla_dense_mma_supports, mla_dense_mma_cuda},
    {"cuda", mla_dense_cuda_supports, mla_dense_cuda},
    {"simd", [](const MlaDenseArgs&) { return vectors_available(); }, mla_dense_simd},
    {"reference", [](const MlaDenseArgs&) { return true; }, mla_dense_reference},
};

}  // namespace

void mla_dense(KernelContext& context, const MlaDenseArgs& args) {
  dispatch<MlaDenseArgs>(context, "mla_dense", kList, args);
}

}  // namespace tamis
