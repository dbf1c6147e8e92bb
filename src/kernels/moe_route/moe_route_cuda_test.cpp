#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/moe_route/moe_route.h"
#include "kernels/moe_route/moe_route_impl.h"
#include "kernels/test_weight.h"
#include "support/cuda_weight.h"

namespace tamis {
namespace {

class MoeRouteCuda : public CudaTest {
 protected:
  struct Result {
    explicit Result(KernelContext& context, const MoeRouteArgs& a)
        : logits(context, a.gate.tokens * a.gate.experts),
          ids(context, a.gate.tokens * a.gate.num_chosen),
          row_of(context, ids.size()),
          offsets(context, a.gate.experts + 1),
          weights(context, ids.size()),
          rows(context, ids.size() * a.permute.width) {}

    Device<float> logits;
    Device<int32_t> ids, row_of;
    Device<int64_t> offsets;
    Device<float> weights, rows;
  };

  static MoeRouteArgs aimed(MoeRouteArgs a, const Result& r) {
    a.router.y = r.logits.data();
    a.gate.logits = r.logits.data();
    a.gate.ids = r.ids.data();
    a.gate.weights = r.weights.data();
    a.permute.ids = r.ids.data();
    a.permute.row_of = r.row_of.data();
    a.permute.offsets = r.offsets.data();
    a.permute.rows = r.rows.data();
    return a;
  }

  // The bits of the product, the gate and the permutation called one after the other.
  void expect_equal(const MoeRouteArgs& a) {
    const Result got(context(), a), want(context(), a);
    moe_route(context(), aimed(a, got));
    linear(context(), aimed(a, want).router);
    moe_gate(context(), aimed(a, want).gate);
    moe_permute(context(), aimed(a, want).permute);
    ASSERT_EQ(got.ids.read(), want.ids.read());
    ASSERT_EQ(got.row_of.read(), want.row_of.read());
    ASSERT_EQ(got.offsets.read(), want.offsets.read());
    for (const auto& [x, y] : {std::pair{got.logits.read(), want.logits.read()},
                               std::pair{got.weights.read(), want.weights.read()},
                               std::pair{got.rows.read(), want.rows.read()}}) {
      ASSERT_EQ(std::memcmp(x.data(), y.data(), x.size() * sizeof(float)), 0);
    }
  }
};

TEST_F(MoeRouteCuda, IsTheProductTheGateAndThePermutation) {
  struct Case {
    int64_t experts, groups, topk_group, chosen, width;
  };
  for (const Case& c : {Case{256, 8, 4, 8, 7168}, Case{16, 4, 2, 4, 256}, Case{1, 1, 1, 1, 3},
                        Case{33, 1, 1, 6, 66}, Case{160, 8, 3, 6, 5}, Case{4000, 1, 1, 2, 8}}) {
    const DType dtype = c.width % 2 == 0 ? DType::kBF16 : DType::kF32;
    const TestWeight router = test_weight(dtype, c.experts, c.width, 1);
    const DeviceWeight w(context(), router);
    for (const int64_t tokens : {0, 1, 2, 4, 7, 8, 9, 70}) {
      if (skip_case()) continue;
      std::vector<float> values = random_floats(tokens * c.width, 3);
      if (tokens == 2) values[0] = std::numeric_limits<float>::quiet_NaN();
      Device<float> x(context(), values), bias(context(), random_floats(c.experts, 2));
      MoeRouteArgs a;
      a.router = {x.data(), c.width, tokens, w.w(), nullptr, c.experts};
      a.gate.bias = bias.data();
      a.gate.tokens = a.permute.tokens = tokens;
      a.gate.experts = a.permute.experts = c.experts;
      a.gate.groups = c.groups;
      a.gate.topk_group = c.topk_group;
      a.gate.num_chosen = a.permute.num_chosen = c.chosen;
      a.permute.x = x.data();
      a.permute.width = c.width;
      ASSERT_NO_FATAL_FAILURE(expect_equal(a)) << c.experts << " " << tokens;
    }
  }
}

// Without rows the order comes out all the same, by one launch or by several.
TEST_F(MoeRouteCuda, RowsAreNotNeeded) {
  constexpr int64_t kExperts = 16, kWidth = 256;
  const DeviceWeight w(context(), test_weight(DType::kBF16, kExperts, kWidth, 1));
  for (const int64_t tokens : {1, 9}) {
    const Device<float> x(context(), random_floats(tokens * kWidth, 3));
    MoeRouteArgs a;
    a.router = {x.data(), kWidth, tokens, w.w(), nullptr, kExperts};
    a.gate.tokens = a.permute.tokens = tokens;
    a.gate.experts = a.permute.experts = kExperts;
    a.gate.num_chosen = a.permute.num_chosen = 4;
    a.permute.x = x.data();
    a.permute.width = kWidth;
    const Result with(context(), a), without(context(), a);
    moe_route(context(), aimed(a, with));
    MoeRouteArgs bare = aimed(a, without);
    bare.permute.x = nullptr;
    bare.permute.rows = nullptr;
    moe_route(context(), bare);
    EXPECT_EQ(with.ids.read(), without.ids.read());
    EXPECT_EQ(with.row_of.read(), without.row_of.read());
    EXPECT_EQ(with.offsets.read(), without.offsets.read());
    const std::vector<float> rows = without.rows.read();
    EXPECT_TRUE(std::isnan(rows.front()) && std::isnan(rows.back())) << "written";
  }
}

// The norm and the residual sum within it are those of rms_norm.
TEST_F(MoeRouteCuda, TheNormIsItsOwn) {
  constexpr int64_t kExperts = 16, kWidth = 256;
  const TestWeight router = test_weight(DType::kBF16, kExperts, kWidth, 1);
  const DeviceWeight w(context(), router);
  for (const int64_t tokens : {1, 2, 3, 4, 9}) {
    const std::vector<float> values = random_floats(tokens * kWidth, 3);
    Device<float> delta(context(), random_floats(tokens * kWidth, 4)),
        weight(context(), random_floats(kWidth, 5));
    std::vector<std::vector<float>> streams, normed, rows;
    for (const bool joined : {false, true}) {
      Device<float> x(context(), values), y(context(), tokens * kWidth);
      MoeRouteArgs a;
      const RmsNormArgs norm{x.data(), kWidth, delta.data(), weight.data(), tokens,
                             kWidth,   1e-6F,  y.data(),     kWidth,        false};
      if (joined) {
        a.norm = norm;
      } else {
        rms_norm(context(), norm);
      }
      a.router = {y.data(), kWidth, tokens, w.w(), nullptr, kExperts};
      a.gate.tokens = a.permute.tokens = tokens;
      a.gate.experts = a.permute.experts = kExperts;
      a.gate.num_chosen = a.permute.num_chosen = 4;
      a.permute.x = y.data();
      a.permute.width = kWidth;
      const Result r(context(), a);
      moe_route(context(), aimed(a, r));
      streams.push_back(x.read());
      normed.push_back(y.read());
      rows.push_back(r.rows.read());
    }
    EXPECT_EQ(streams[0], streams[1]) << tokens;
    EXPECT_EQ(normed[0], normed[1]) << tokens;
    EXPECT_EQ(rows[0], rows[1]) << tokens;
  }
}

TEST_F(MoeRouteCuda, TakesWhatItSays) {
  MoeRouteArgs a;
  a.router.w.dtype = DType::kBF16;
  a.router.w.rows = a.gate.experts = 16;
  a.router.w.cols = 128;
  a.gate.num_chosen = 4;
  for (const int64_t tokens : {0, 1, 8, 9}) {
    a.gate.tokens = tokens;
    EXPECT_EQ(moe_route_cuda_supports(a), tokens == 1 || tokens == 8) << tokens;
  }
  a.gate.tokens = 1;
  a.router.w.cols = 1025;
  EXPECT_FALSE(moe_route_cuda_supports(a)) << "more weights than one block should read";
  a.router.w.cols = 128;
  a.router.w.dtype = DType::kF16;
  EXPECT_FALSE(moe_route_cuda_supports(a));
}

}  // namespace
}  // namespace tamis
