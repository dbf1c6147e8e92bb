#include "kernels/moe_permute/moe_permute.h"

#include <algorithm>

#include "kernels/moe_permute/moe_permute_impl.h"
#include "kernels/simd/targets.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

void moe_permute_reference(KernelContext& context, const MoePermuteArgs& a) {
  const int64_t pairs = a.tokens * a.num_chosen;
  std::fill_n(a.offsets, a.experts + 1, 0);
  for (int64_t i = 0; i < pairs; ++i) ++a.offsets[a.ids[i] + 1];
  for (int64_t e = 0; e < a.experts; ++e) a.offsets[e + 1] += a.offsets[e];
  for (int64_t i = 0; i < pairs; ++i) a.row_of[i] = static_cast<int32_t>(a.offsets[a.ids[i]]++);
  for (int64_t e = a.experts; e > 0; --e) a.offsets[e] = a.offsets[e - 1];  // undo the running ends
  a.offsets[0] = 0;
  if (a.rows == nullptr && a.rows_bf16 == nullptr) return;
  context.pool().run(a.tokens, [&](int64_t t, int) {
    const float* x = a.x + t * a.width;
    for (int64_t i = 0; i < a.num_chosen; ++i) {
      const int64_t at = a.row_of[t * a.num_chosen + i] * a.width;
      if (a.rows_bf16 != nullptr) {
        std::transform(x, x + a.width, a.rows_bf16 + at, float_to_bf16);
      } else {
        std::copy_n(x, a.width, a.rows + at);
      }
    }
  });
}

}  // namespace

void moe_combine_reference(KernelContext& context, const MoeCombineArgs& a) {
  context.pool().run(a.tokens, [&](int64_t t, int) {
    float* y = a.y + t * a.width;
    std::fill_n(y, a.width, 0.0f);
    for (int64_t i = 0; i < a.num_chosen; ++i) {
      const int64_t pair = t * a.num_chosen + i;
      const float* row = a.rows + static_cast<int64_t>(a.row_of[pair]) * a.width;
      for (int64_t c = 0; c < a.width; ++c) y[c] += a.weights[pair] * row[c];
    }
    if (a.shared == nullptr) return;
    for (int64_t c = 0; c < a.width; ++c) y[c] += a.shared[t * a.width + c];
  });
}

namespace {

constexpr Implementation<MoePermuteArgs> kPermute[] = {
    {"cuda", moe_permute_cuda_supports, moe_permute_cuda},
    {"reference", [](const MoePermuteArgs&) { return true; }, moe_permute_reference},
};
constexpr Implementation<MoeCombineArgs> kCombine[] = {
    {"cuda", [](const MoeCombineArgs&) { return true; }, moe_combine_cuda},
    {"simd", [](const MoeCombineArgs&) { return vectors_available(); }, moe_combine_simd},
    {"reference", [](const MoeCombineArgs&) { return true; }, moe_combine_reference},
};

}  // namespace

void moe_permute(KernelContext& context, const MoePermuteArgs& args) {
  dispatch<MoePermuteArgs>(context, "moe_permute", kPermute, args);
}

void moe_combine(KernelContext& context, const MoeCombineArgs& args) {
  dispatch<MoeCombineArgs>(context, "moe_combine", kCombine, args);
}

}  // namespace tamis
