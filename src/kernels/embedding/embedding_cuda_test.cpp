#include "kernels/embedding/embedding.h"
#include "support/cuda_device.h"
#include "support/cuda_weight.h"

namespace tamis {
namespace {

using EmbeddingCuda = CudaTest;

TEST_F(EmbeddingCuda, HasTheReferencesBits) {
  const std::vector<int32_t> ids = {0, 36, 5, 5, 37, -1, 2000000000, 3};
  for (const DType dtype : kWeightFormats) {
    for (const int64_t cols : {1, 33, 256, 257, 1100}) {
      for (const int64_t first_id : {0, 3}) {
        const TestWeight t = test_weight(dtype, 37, cols, 1);
        DeviceWeight w(context(), t);
        Device<int32_t> device_ids(context(), ids);
        for (const int64_t tokens : {int64_t{0}, int64_t{1}, static_cast<int64_t>(ids.size())}) {
          Device<float> y(context(), tokens * cols);
          embedding(context(), {w.w(), first_id, device_ids.data(), tokens, y.data()});
          std::vector<float> want(static_cast<size_t>(tokens * cols));
          embedding(reference(), {t.w, first_id, ids.data(), tokens, want.data()});
          const std::vector<float> got = y.read();
          ASSERT_EQ(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)), 0)
              << dtype_name(dtype) << " " << cols;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tamis
