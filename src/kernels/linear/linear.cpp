#include "kernels/linear/linear.h"

#include <string>

#include "base/error.h"
#include "kernels/linear/linear_impl.h"
#include "kernels/simd/targets.h"

namespace tamis {
namespace {

using Batch = std::span<const LinearArgs>;

constexpr Implementation<Batch> kLinear[] = {
    {"cuda", [](const Batch&) { return true; }, linears_cuda},
    {"simd", [](const Batch&) { return vectors_available(); }, linears_simd},
    {"reference", [](const Batch&) { return true; }, linears_reference},
};

constexpr Implementation<LinearFp8Args> kLinearFp8[] = {
    {"cuda", [](const LinearFp8Args&) { return true; }, linear_fp8_cuda},
    {"simd", [](const LinearFp8Args&) { return vectors_available(); }, linear_fp8_simd},
    {"reference", [](const LinearFp8Args&) { return true; }, linear_fp8_reference},
};

}  // namespace

void linear(KernelContext& context, const LinearArgs& args) {
  linears(context, std::span<const LinearArgs>(&args, 1));
}

void linears(KernelContext& context, std::span<const LinearArgs> args) {
  dispatch<Batch>(context, "linear", kLinear, args);
}

void linear_fp8(KernelContext& context, const LinearFp8Args& args) {
  if (args.base.w.dtype != DType::kF8E4M3) {
    throw UsageError("[linear_fp8] weight: got " + std::string(dtype_name(args.base.w.dtype)) +
                     ", want F8_E4M3");
  }
  dispatch<LinearFp8Args>(context, "linear_fp8", kLinearFp8, args);
}

}  // namespace tamis
