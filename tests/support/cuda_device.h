// For tests of x_cuda functions: device arrays made from vectors and read back, a fixture
// with both back ends, and outputs filled with a pattern that no result has.
//
//   using RmsNormCuda = CudaTest;
//   TEST_F(RmsNormCuda, IsTheReference) {
//     Device<float> x(context(), random_floats(n, 1)), y(context(), n);   // y is poisoned
//     rms_norm(context(), {.x = x.data(), ...});
//     expect(y.read(), ...);
//   }
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <vector>

#include "kernels/context.h"
#include "tensor/cuda/device.h"

namespace tamis {

template <typename T>
class Device {
 public:
  Device(KernelContext& context, const std::vector<T>& values)
      : Device(context, static_cast<int64_t>(values.size())) {
    device_.upload(buffer_.data(), values.data(), bytes());
  }
  // Every byte 0xFF: NaN as float, -1 as an integer.
  Device(KernelContext& context, int64_t count)
      : device_(*context.device()),
        count_(count),
        buffer_(device_, count * static_cast<int64_t>(sizeof(T)), "a test") {
    device_.fill(buffer_.data(), 0xFF, bytes());
  }

  T* data() const { return reinterpret_cast<T*>(buffer_.data()); }
  int64_t size() const { return count_; }
  std::vector<T> read() const {
    std::vector<T> values(static_cast<size_t>(count_));
    device_.download(values.data(), buffer_.data(), bytes());
    return values;
  }

 private:
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }

  DeviceContext& device_;
  int64_t count_;
  DeviceBuffer buffer_;
};

class CudaTest : public testing::Test {
 protected:
  KernelContext& context() { return context_; }
  // The same operation by the reference, on host memory.
  KernelContext& reference() { return reference_; }

  // Under compute-sanitizer, which makes kernels a hundred times slower, TAMIS_TEST_EVERY=n leaves
  // of a test's shapes the first and one in n.
  static bool thinned() { return every() > 1; }
  bool skip_case() {
    const int i = cases_++;
    return thinned() && i != 0 && i % every() != 3 % every();
  }
  static int repeats(int n) { return thinned() ? 1 : n; }

 private:
  static int every() {
    const char* n = std::getenv("TAMIS_TEST_EVERY");
    return n == nullptr ? 1 : std::atoi(n);
  }
  int cases_ = 0;

  // Throws without a GPU, and the test fails: these run only where one is asked for.
  KernelContext context_{1, Backend::kCuda};
  KernelContext reference_{1, Backend::kReference};
};

}  // namespace tamis
