#include <cmath>
#include <limits>

#include "kernels/cross_entropy/cross_entropy.h"
#include "kernels/test_weight.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

using CrossEntropyCuda = CudaTest;

TEST_F(CrossEntropyCuda, IsTheReference) {
  for (const int64_t vocabulary : {1, 2, 511, 512, 513, 8192, 129280}) {
    for (const int64_t rows : {0, 1, 4}) {
      std::vector<float> logits = random_floats(rows * vocabulary, 1);
      for (float& x : logits) x *= 10;
      std::vector<int32_t> targets(static_cast<size_t>(rows));
      for (int64_t r = 0; r < rows; ++r) targets[r] = static_cast<int32_t>(r * 77 % vocabulary);
      if (rows == 4) logits[vocabulary + vocabulary / 2] = std::nanf("");
      if (rows == 4) logits[2 * vocabulary] = -std::numeric_limits<float>::infinity();
      Device<float> x(context(), logits);
      Device<int32_t> t(context(), targets);
      Device<double> loss(context(), rows);
      cross_entropy(context(), {x.data(), t.data(), rows, vocabulary, loss.data()});
      std::vector<double> want(static_cast<size_t>(rows));
      cross_entropy(reference(), {logits.data(), targets.data(), rows, vocabulary, want.data()});
      const std::vector<double> got = loss.read();
      for (size_t r = 0; r < want.size(); ++r) {
        if (!std::isfinite(want[r])) {
          ASSERT_EQ(std::isnan(got[r]), std::isnan(want[r]));
          ASSERT_FALSE(std::isfinite(got[r]));
          continue;
        }
        // Sums of positive doubles in another order: vocabulary roundings, relative to the sum.
        ASSERT_NEAR(got[r], want[r],
                    static_cast<double>(vocabulary + 8) * 0x1p-52 * (1 + std::fabs(want[r])));
      }
    }
  }
}

}  // namespace
}  // namespace tamis
