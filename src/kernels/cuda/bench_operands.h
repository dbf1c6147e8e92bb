// Random operands of CUDA workloads, made on the device.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/context.h"
#include "kernels/kv_layout.h"
#include "kernels/weight.h"
#include "tensor/cuda/device.h"

namespace tamis {

// n elements on the device.
template <typename T>
class DeviceArray {
 public:
  DeviceArray(KernelContext& context, int64_t n)
      : buffer_(*context.device(), n * static_cast<int64_t>(sizeof(T)), "benchmark operands") {}
  DeviceArray(KernelContext& context, const std::vector<T>& values)
      : DeviceArray(context, static_cast<int64_t>(values.size())) {
    context.device()->upload(buffer_.data(), values.data(), buffer_.bytes());
  }
  T* data() const { return reinterpret_cast<T*>(buffer_.data()); }

 private:
  DeviceBuffer buffer_;
};

// About normal, variance 1; another sequence for another seed.
DeviceArray<float> normal_floats(KernelContext& context, int64_t n, uint32_t seed);
// 100 + uniform(0, 1): one coarse bin of a histogram by leading bits.
DeviceArray<float> narrow_floats(KernelContext& context, int64_t n, uint32_t seed);

// For each of `tokens` rows `k` ascending positions below row's own `visible`: one at random from
// each k-th part.
DeviceArray<int32_t> random_selection(KernelContext& context, int64_t tokens, int64_t k,
                                      const int32_t* position, uint32_t seed);

// `sequences` sequences of `context` tokens on shuffled pages, filled with normal values; the last
// `tokens` of each are the call's tokens.
struct DeviceKv {
  DeviceKv(KernelContext& context, const KvLayout& layout, int64_t sequences,
           int64_t context_length, int64_t tokens, uint32_t seed);
  TokenMap map() const;

  int64_t count, max_context;
  KvLayer kv;
  DeviceArray<std::byte> bytes;
  DeviceArray<int32_t> pages, sequence_of, position;
  DeviceArray<KvSequence> views;
};

// A BF16 or F8_E4M3 matrix of normal values, one float scale of 2^-6 per 128x128 with F8_E4M3.
struct DeviceWeight {
  DeviceWeight(KernelContext& context, DType dtype, int64_t rows, int64_t cols, uint32_t seed);
  DeviceArray<std::byte> data, scales;
  Weight w;
};

}  // namespace tamis
