#include "kernels/mla_sparse/mla_sparse.h"

#include "kernels/mla_sparse/mla_sparse_impl.h"

namespace tamis {
namespace {

constexpr Implementation<MlaSparseArgs> kList[] = {
    {"cuda_mma", mla_sparse_mma_supports, mla_sparse_mma_cuda},
    {"cuda", mla_sparse_cuda_supports, mla_sparse_cuda},
    {"simd", mla_sparse_simd_supports, mla_sparse_simd},
    {"reference", [](const MlaSparseArgs&) { return true; }, mla_sparse_reference},
};

}  // namespace

void mla_sparse(KernelContext& context, const MlaSparseArgs& args) {
  dispatch<MlaSparseArgs>(context, "mla_sparse", kList, args);
}

}  // namespace tamis
