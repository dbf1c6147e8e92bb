#include "kernels/per_head_linear/per_head_linear.h"

#include <algorithm>
#include <array>

#include "kernels/integer_weight.h"
#include "kernels/linear/linear_int8.h"
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

void products_of_heads(KernelContext& context, const PerHeadLinearArgs& a, LinearCall products) {
  constexpr int64_t kHeadsAtOnce = 128;
  std::array<LinearArgs, kHeadsAtOnce> heads;
  for (int64_t begin = 0; begin < a.num_heads; begin += kHeadsAtOnce) {
    const int64_t count = std::min(kHeadsAtOnce, a.num_heads - begin);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t h = begin + i;
      LinearArgs& l = heads[static_cast<size_t>(i)];
      l.x = a.x + h * a.x_head_stride;
      l.x_stride = a.x_token_stride;
      l.m = a.num_tokens;
      l.w = a.w.row_slice(h * a.head_rows + a.row_offset, a.rows);
      l.y = a.y + h * a.y_head_stride;
      l.y_stride = a.y_token_stride;
    }
    products(context, {heads.data(), static_cast<size_t>(count)});
  }
}

void per_head_linear(KernelContext& context, const PerHeadLinearArgs& args) {
  // A launch of their own is saved where the kernel takes them along.
  const bool along = context.backend() == Backend::kCuda && args.transposed;
  if (!along && !args.beside.empty()) ropes(context, args.beside);
  if (args.int8 && !args.transposed && is_integer(args.w)) {
    return products_of_heads(context, args, linears_int8);
  }
  dispatch<PerHeadLinearArgs>(context, "per_head_linear", kList, args);
}

}  // namespace tamis
