#include <cmath>

#include "kernels/layer_norm/layer_norm.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

using LayerNormCuda = CudaTest;

TEST_F(LayerNormCuda, IsTheReferenceAndNothingElse) {
  for (const int64_t width : {1, 2, 31, 32, 33, 128, 1000}) {
    const std::vector<float> w = random_floats(width, 1), b = random_floats(width, 2);
    Device<float> dw(context(), w), db(context(), b);
    for (const int64_t rows : {0, 1, 3, 4, 5, 70}) {
      const int64_t stride = width + 3;
      const std::vector<float> x = random_floats(rows * stride, 3);
      Device<float> dx(context(), x), dy(context(), rows * stride);
      layer_norm(context(),
                 {dx.data(), stride, dw.data(), db.data(), rows, width, 1e-6f, dy.data(), stride});
      std::vector<float> want(x.size());
      layer_norm(reference(),
                 {x.data(), stride, w.data(), b.data(), rows, width, 1e-6f, want.data(), stride});
      const std::vector<float> got = dy.read();
      for (int64_t i = 0; i < rows * stride; ++i) {
        if (i % stride >= width) {
          ASSERT_TRUE(std::isnan(got[i])) << "wrote past the row";
          continue;
        }
        // Double inside; the two may round to neighbouring floats.
        ASSERT_NEAR(got[i], want[i], 2 * kUnitF32 * std::fabs(want[i]) + 1e-12);
      }
    }
  }
}

}  // namespace
}  // namespace tamis
