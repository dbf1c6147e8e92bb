#include "kernels/fp8_products/fp8_products.h"

#include "base/error.h"
#include "kernels/fp8_products/fp8_products_impl.h"
#include "tensor/cuda/device.h"

namespace tamis {

bool fp8_products_run(const KernelContext& context) {
  if (!context.allowed("fp8_products", "cuda_sm90")) return false;  // a CPU, or forced
  const bool able = context.device()->info().sm == 90 && has_fp8_products_cuda();
  if (!able && !context.allowed("fp8_products", "cuda")) {
    throw UsageError(
        "fp8_products: cuda_sm90 needs a Hopper GPU and a build with 90 among TAMIS_CUDA_ARCHS; "
        "run "
        "without TAMIS_OP=fp8_products:cuda_sm90");
  }
  return able;
}

void fp8_products_forward(KernelContext& context, const Fp8ForwardArgs& args) {
  context.note("fp8_products", "cuda_sm90");
  fp8_products_forward_cuda(context, args);
}

void fp8_products_backward(KernelContext& context, const Fp8BackwardArgs& args) {
  context.note("fp8_products", "cuda_sm90");
  fp8_products_backward_cuda(context, args);
}

}  // namespace tamis
