#include <cmath>
#include <limits>

#include "kernels/moe_gate/moe_gate.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

class MoeGateCuda : public CudaTest {
 protected:
  // The reference's and the device's choice for the same arguments; pointers are filled in here.
  void expect_equal(MoeGateArgs a, const std::vector<float>& logits,
                    const std::vector<float>& bias) {
    const auto pairs = static_cast<size_t>(a.tokens * a.num_chosen);
    Device<float> dl(context(), logits), db(context(), bias);
    Device<int32_t> ids(context(), static_cast<int64_t>(pairs));
    Device<float> weights(context(), static_cast<int64_t>(pairs));
    Choice want{std::vector<int32_t>(pairs), std::vector<float>(pairs)};
    a.logits = logits.data();
    a.bias = bias.empty() ? nullptr : bias.data();
    a.ids = want.ids.data();
    a.weights = want.weights.data();
    moe_gate(reference(), a);
    a.logits = dl.data();
    a.bias = bias.empty() ? nullptr : db.data();
    a.ids = ids.data();
    a.weights = weights.data();
    moe_gate(context(), a);
    const Choice got{ids.read(), weights.read()};
    ASSERT_EQ(got.ids, want.ids) << a.experts << " " << a.groups;
    for (size_t i = 0; i < pairs; ++i) {
      if (std::isnan(want.weights[i])) {
        ASSERT_TRUE(std::isnan(got.weights[i]));
        continue;
      }
      // exp, 1 + e, its reciprocal, the norm, two products: both sides round each.
      ASSERT_NEAR(got.weights[i], want.weights[i], 12 * kUnitF32 * std::fabs(want.weights[i]));
    }
  }
};

TEST_F(MoeGateCuda, ChoosesAsTheReference) {
  struct Case {
    int64_t experts, groups, topk_group, chosen;
  };
  for (const Case& c : {Case{256, 8, 4, 8}, Case{16, 4, 2, 4}, Case{1, 1, 1, 1}, Case{33, 1, 1, 6},
                        Case{64, 64, 8, 8}, Case{160, 8, 3, 6}, Case{512, 1, 1, 10}}) {
    for (const bool softmax : {false, true}) {
      for (const int64_t tokens : {0, 1, 3, 4, 5, 70}) {
        MoeGateArgs a;
        a.tokens = tokens;
        a.experts = c.experts;
        a.groups = c.groups;
        a.topk_group = c.topk_group;
        a.num_chosen = c.chosen;
        a.softmax = softmax;
        a.norm_topk_prob = tokens != 3;
        a.routed_scaling_factor = 2.5f;
        const std::vector<float> logits = random_floats(tokens * c.experts, 1);
        expect_equal(a, logits, {});
        expect_equal(a, logits, random_floats(c.experts, 2));
      }
    }
  }
}

TEST_F(MoeGateCuda, TiesAndBadNumbers) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  MoeGateArgs a;
  a.tokens = 5;
  a.experts = 64;
  a.groups = 8;
  a.topk_group = 3;
  a.num_chosen = 8;
  std::vector<float> logits(5 * 64, 0.25f);  // token 0: all equal
  for (int64_t e = 0; e < 64; ++e) {
    logits[64 + e] = std::nanf("");
    logits[128 + e] = static_cast<float>(e % 3);
    logits[192 + e] = e % 2 == 0 ? std::nanf("") : 1.0f;
    logits[256 + e] = e % 5 == 0 ? kInf : -kInf;
  }
  expect_equal(a, logits, {});
  a.groups = a.topk_group = 1;
  expect_equal(a, logits, {});
}

}  // namespace
}  // namespace tamis
