// moe_combine with Highway: the sums of the reference, with its roundings, several columns at once.
#include "kernels/moe_permute/moe_permute_impl.h"
#include "kernels/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/moe_permute/moe_combine_simd.cpp"
#include <hwy/foreach_target.h>
//
#include "kernels/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR
void combine_token(const MoeCombineArgs&, int64_t) { throw_no_vectors(); }
#else

void combine_token(const MoeCombineArgs& a, int64_t t) {
  const FloatTag d;
  const float* weights = a.weights + t * a.num_chosen;
  const int32_t* row_of = a.row_of + t * a.num_chosen;
  int64_t c = 0;
  for (; c + kPartLanes <= a.width; c += kPartLanes) {
    auto sum = hn::Zero(d);
    for (int64_t i = 0; i < a.num_chosen; ++i) {
      const auto row = hn::LoadU(d, a.rows + row_of[i] * a.width + c);
      sum = hn::Add(sum, hn::Mul(hn::Set(d, weights[i]), row));
    }
    if (a.shared != nullptr) sum = hn::Add(sum, hn::LoadU(d, a.shared + t * a.width + c));
    hn::StoreU(sum, d, a.y + t * a.width + c);
  }
  for (; c < a.width; ++c) {
    float sum = 0;
    for (int64_t i = 0; i < a.num_chosen; ++i) sum += weights[i] * a.rows[row_of[i] * a.width + c];
    a.y[t * a.width + c] = a.shared == nullptr ? sum : sum + a.shared[t * a.width + c];
  }
}

#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tamis {
namespace {

HWY_EXPORT(combine_token);

}  // namespace

void moe_combine_simd(KernelContext& context, const MoeCombineArgs& a) {
  context.pool().run(a.tokens, [&](int64_t t, int) { HWY_DYNAMIC_DISPATCH(combine_token)(a, t); });
}

}  // namespace tamis
#endif  // HWY_ONCE
