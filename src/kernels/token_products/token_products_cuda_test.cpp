#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/test_weight.h"
#include "kernels/token_products/token_products.h"
#include "kernels/token_products/token_products_impl.h"
#include "support/cuda_weight.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

// What comes before the norm.
enum class Before { kNothing, kDelta, kExperts, kEmbedding };

class TokenProductsCuda : public CudaTest {
 protected:
  static constexpr int64_t kChosen = 3;

  // The values of one token, and what becomes of them.
  struct Values {
    Values(KernelContext& context, int64_t width, const std::vector<int64_t>& rows)
        : x(context, random_floats(width, 1)),
          delta(context, random_floats(width, 2)),
          norm(context, random_floats(width, 3)),
          experts(context, random_floats(kChosen * width, 4)),
          shared(context, random_floats(width, 5)),
          weights(context, random_floats(kChosen, 6)),
          other(context, random_floats(width, 7)),
          normed(context, width),
          id(context, std::vector<int32_t>{2}),
          row_of(context, std::vector<int32_t>{2, 0, 1}),
          sequence(context, std::vector<int32_t>{0}),
          failed(context, 1) {
      for (const int64_t r : rows) y.emplace_back(context, r);
    }
    Device<float> x, delta, norm, experts, shared, weights, other, normed;
    Device<int32_t> id, row_of, sequence, failed;
    std::vector<Device<float>> y;
  };

  struct Problem {
    DType dtype;
    int64_t width;
    std::vector<int64_t> rows;
  };

  std::vector<TokenStep> steps(const Values& v, int64_t width, Before before, const Weight& table) {
    std::vector<TokenStep> s;
    s.push_back(
        {CheckFiniteArgs{v.norm.data(), 1, width, nullptr, v.sequence.data(), 5, v.failed.data()},
         2});
    if (before == Before::kEmbedding) {
      s.push_back({EmbeddingArgs{table, 0, v.id.data(), 1, v.x.data()}, 0});
    }
    if (before == Before::kExperts) {
      s.push_back({MoeCombineArgs{v.experts.data(), v.row_of.data(), v.weights.data(), 1, kChosen,
                                  width, v.shared.data(), v.delta.data()},
                   0});
    }
    const bool delta = before == Before::kDelta || before == Before::kExperts;
    if (delta) {
      s.push_back({CheckFiniteArgs{v.delta.data(), 1, width, nullptr, v.sequence.data(), 9,
                                   v.failed.data()},
                   0});
    }
    s.push_back({RmsNormArgs{v.x.data(), width, delta ? v.delta.data() : nullptr, v.norm.data(), 1,
                             width, 1e-6F, v.normed.data(), width, false},
                 0});
    s.push_back({RmsNormArgs{v.other.data(), width, nullptr, v.norm.data(), 1, width, 1e-6F,
                             v.other.data(), width, false},
                 1});
    return s;
  }

  // The bits of the steps and the products one after the other.
  void expect_equal(const Problem& p, Before before, float bad = 0) {
    std::vector<DeviceWeight> weights;
    uint32_t seed = 10;
    for (const int64_t r : p.rows) {
      weights.emplace_back(context(), test_weight(p.dtype, r, p.width, seed++));
    }
    const DeviceWeight table(context(), test_weight(DType::kF32, 5, p.width, 30));
    const Values got(context(), p.width, p.rows), want(context(), p.width, p.rows);
    for (const Values* v : {&got, &want}) {
      if (bad != 0) {
        for (float* x : {v->shared.data(), v->delta.data()}) context().device()->upload(x, &bad, 4);
      }
      const std::vector<TokenStep> all = steps(*v, p.width, before, table.w());
      std::vector<LinearArgs> products;
      for (size_t i = 0; i < weights.size(); ++i) {
        products.push_back(
            {v->normed.data(), p.width, 1, weights[i].w(), v->y[i].data(), p.rows[i]});
      }
      if (v == &want) {
        for (const TokenStep& s : all) token_op_alone(context(), s.op);
        for (const LinearArgs& a : products) linear(context(), a);
        continue;
      }
      ASSERT_TRUE(token_products_cuda_supports(1, {all, products}));
      const bool late = token_products(context(), 1, {all, products});
      EXPECT_EQ(late, before == Before::kDelta || before == Before::kExperts);
      if (late) token_op_alone(context(), all[all.size() - 2].op);
    }
    const auto same = [](const Device<float>& a, const Device<float>& b) {
      const std::vector<float> x = a.read(), y = b.read();
      return std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
    };
    for (size_t i = 0; i < got.y.size(); ++i) EXPECT_TRUE(same(got.y[i], want.y[i])) << i;
    EXPECT_TRUE(same(got.x, want.x) && same(got.delta, want.delta) && same(got.other, want.other));
    EXPECT_EQ(got.failed.read(), want.failed.read());
  }
};

TEST_F(TokenProductsCuda, HasTheBitsOfTheStepsAndTheProducts) {
  for (const Problem& p :
       {Problem{DType::kBF16, 256, {128, 576, 128, 4}}, Problem{DType::kBF16, 128, {768, 512}},
        Problem{DType::kF32, 1000, {33, 1}}, Problem{DType::kBF16, 2048, {31}},
        Problem{DType::kBF16, 6, {5, 32, 7}}, Problem{DType::kF32, 1, {1}}}) {
    for (const Before before :
         {Before::kNothing, Before::kDelta, Before::kExperts, Before::kEmbedding}) {
      ASSERT_NO_FATAL_FAILURE(expect_equal(p, before))
          << p.width << " " << static_cast<int>(before);
    }
  }
}

TEST_F(TokenProductsCuda, MarksWhatIsNotFinite) {
  const Problem p{DType::kBF16, 256, {128, 4}};
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    ASSERT_NO_FATAL_FAILURE(expect_equal(p, Before::kExperts, bad));
    ASSERT_NO_FATAL_FAILURE(expect_equal(p, Before::kDelta, bad));
  }
}

TEST_F(TokenProductsCuda, TakesWhatItSays) {
  const Values v(context(), 256, {64});
  const DeviceWeight w(context(), test_weight(DType::kBF16, 64, 256, 1));
  const LinearArgs product{v.normed.data(), 256, 1, w.w(), v.y[0].data(), 64};
  const std::vector<TokenStep> all = steps(v, 256, Before::kDelta, w.w());
  const auto takes = [](int64_t tokens, const std::vector<TokenStep>& s, const LinearArgs& p) {
    return token_products_cuda_supports(tokens, {s, {&p, 1}});
  };
  EXPECT_TRUE(takes(1, all, product));
  EXPECT_FALSE(takes(2, all, product)) << "tokens";
  LinearArgs other = product;
  other.x = v.x.data();
  EXPECT_FALSE(takes(1, all, other)) << "not of the norm";
  other = product;
  other.w.dtype = DType::kF16;
  EXPECT_FALSE(takes(1, all, other)) << "format";
  other = product;
  other.w.rows = 1 << 20;
  EXPECT_FALSE(takes(1, all, other)) << "more blocks than should make one norm";
  std::vector<TokenStep> more = all;
  more.push_back({RopeArgs{}, 0});
  EXPECT_FALSE(takes(1, more, product)) << "a step behind the norm";
  more.insert(more.begin(), 9, {RopeArgs{}, 1});
  EXPECT_FALSE(takes(1, more, product)) << "too many steps";
}

}  // namespace
}  // namespace tamis
