#include "kernels/linear/linear_int8.h"

#include <algorithm>
#include <string>

#include "base/error.h"
#include "kernels/integer_weight.h"
#include "kernels/linear/linear_int8_impl.h"
#include "kernels/simd/targets.h"

namespace tamis {
namespace {

using Batch = std::span<const LinearArgs>;

// Vector code reads scales as the loader leaves them, and groups that begin where a scale does.
bool simd_takes(const Batch& args) {
  const auto plain = [](const LinearArgs& a) {
    return a.w.scale_dtype == DType::kBF16 && a.w.col_offset % kIntGroup == 0;
  };
  return vectors_available() && std::all_of(args.begin(), args.end(), plain);
}

constexpr Implementation<Batch> kList[] = {
    {"simd", simd_takes, linears_int8_simd},
    {"reference", [](const Batch&) { return true; }, linears_int8_reference},
};

}  // namespace

void linears_int8(KernelContext& context, std::span<const LinearArgs> args) {
  for (const LinearArgs& a : args) {
    if (is_integer(a.w)) continue;
    throw UsageError("[linear_int8] weight: got " + std::string(dtype_name(a.w.dtype)) +
                     ", want I8 or I4");
  }
  dispatch<Batch>(context, "linear_int8", kList, args);
}

}  // namespace tamis
