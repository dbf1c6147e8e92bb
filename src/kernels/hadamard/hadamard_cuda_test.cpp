#include <cstring>

#include "kernels/hadamard/hadamard.h"
#include "kernels/test_weight.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

using HadamardCuda = CudaTest;

TEST_F(HadamardCuda, HasTheReferencesBits) {
  for (const int64_t width : {1, 2, 64, 128, 512, 1024, 16384, 32768}) {
    for (const int64_t rows : {0, 1, 3, 4, 5, 129}) {
      if (rows * width > 200000) continue;
      for (const bool round : {false, true}) {
        std::vector<float> x = random_floats(rows * width, 1);
        Device<float> dx(context(), x);
        hadamard(context(), {dx.data(), rows, width, round});
        hadamard(reference(), {x.data(), rows, width, round});
        ASSERT_EQ(std::memcmp(dx.read().data(), x.data(), x.size() * sizeof(float)), 0) << width;
      }
    }
  }
}

}  // namespace
}  // namespace tamis
