#include "kernels/matmul/matmul.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/test_weight.h"
#include "kernels/tolerance.h"

namespace tamis {
namespace {

struct Product {
  int64_t m, n, inner;
  bool a_transposed, b_transposed, accumulate;
};

class Problem {
 public:
  explicit Problem(const Product& p)
      : p_(p),
        a_(random_floats(p.m * p.inner + 1, 1)),
        b_(random_floats(p.inner * p.n + 1, 2)),
        c_(random_floats(p.m * (p.n + kGap) + 1, 3)) {}

  MatmulArgs<float> args(std::vector<float>& c) const {
    MatmulArgs<float> x;
    x.a = a_.data();
    x.a_row = p_.a_transposed ? 1 : p_.inner;
    x.a_col = p_.a_transposed ? p_.m : 1;
    x.b = b_.data();
    x.b_row = p_.b_transposed ? 1 : p_.n;
    x.b_col = p_.b_transposed ? p_.inner : 1;
    x.c = c.data();
    x.c_row = p_.n + kGap;
    x.m = p_.m;
    x.n = p_.n;
    x.inner = p_.inner;
    x.accumulate = p_.accumulate;
    return x;
  }

  std::vector<float> run(KernelContext& context) const {
    std::vector<float> c = c_;
    matmul(context, args(c));
    return c;
  }

  void check(const std::vector<float>& got) const {
    std::vector<float> unused;
    const MatmulArgs<float> x = args(unused);
    for (int64_t i = 0; i < p_.m; ++i) {
      for (int64_t j = 0; j < p_.n; ++j) {
        const float start = p_.accumulate ? c_[static_cast<size_t>(i * x.c_row + j)] : 0;
        double want = start, a2 = static_cast<double>(start) * start, b2 = 1;
        for (int64_t l = 0; l < p_.inner; ++l) {
          const double a = x.a[i * x.a_row + l * x.a_col], b = x.b[l * x.b_row + j * x.b_col];
          want += a * b;
          a2 += a * a;
          b2 += b * b;
        }
        ASSERT_NEAR(got[static_cast<size_t>(i * x.c_row + j)], want,
                    dot_tolerance(p_.inner + 1, std::sqrt(a2), std::sqrt(b2)))
            << i << "," << j;
      }
      for (int64_t j = p_.n; j < p_.n + kGap; ++j) {  // the gap between rows is not ours
        const auto at = static_cast<size_t>(i * x.c_row + j);
        ASSERT_EQ(got[at], c_[at]);
      }
    }
  }

 private:
  static constexpr int64_t kGap = 3;
  Product p_;
  std::vector<float> a_, b_, c_;
};

TEST(Matmul, EveryImplementationIsTheFormula) {
  KernelContext simd(2), reference(2);
  simd.force("matmul", "simd");
  reference.force("matmul", "reference");
  for (const int64_t m : {0, 1, 5, 6, 7, 96, 97}) {
    for (const int64_t n : {0, 1, 15, 16, 17, 257}) {
      for (const int64_t inner : {0, 1, 2, 255, 256, 257}) {
        const bool ta = (m + inner) % 2 != 0, tb = (n + inner) % 2 != 0;
        for (const bool accumulate : {false, true}) {
          const Problem problem({m, n, inner, ta, tb, accumulate});
          SCOPED_TRACE(std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(inner));
          problem.check(problem.run(simd));
          problem.check(problem.run(reference));
        }
      }
    }
  }
}

TEST(Matmul, ThreadsAndNeighboursChangeNoBit) {
  const Problem one({200, 300, 700, false, true, true});
  KernelContext single(1), triple(3), context(2);
  EXPECT_EQ(one.run(single), one.run(triple));
  // The first 6 rows alone have the bits that they have among 200.
  const Problem fresh({200, 300, 700, false, true, false});
  const std::vector<float> whole = fresh.run(context);
  std::vector<float> few(whole.size());
  MatmulArgs<float> args = fresh.args(few);
  args.m = 6;
  matmul(context, args);
  for (int64_t i = 0; i < 6; ++i) {
    for (int64_t j = 0; j < 300; ++j) {
      const auto at = static_cast<size_t>(i * args.c_row + j);
      ASSERT_EQ(few[at], whole[at]);
    }
  }
}

}  // namespace
}  // namespace tamis
