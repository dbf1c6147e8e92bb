// Memory for the arrays of a context's operations, host or device by its back end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/context.h"
#include "tensor/cuda/device.h"

namespace tamis {

// An array of T that grows and never gives memory back. The context that it was sized with must
// outlive it.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }

  // n values whose contents are undefined where memory had to be taken anew. DeviceError if the
  // device has no room.
  T* resize(KernelContext& context, int64_t n) {
    if (n > capacity_ && context.device() == nullptr) {
      host_.resize(static_cast<size_t>(n));
      capacity_ = n;
    } else if (n > capacity_) {
      // Work on the stream may still use the old memory; giving it back waits for the device.
      device_ = DeviceBuffer();
      device_ = DeviceBuffer(*context.device(), n * static_cast<int64_t>(sizeof(T)), "training");
      capacity_ = n;
    }
    size_ = n;
    return data();
  }
  void clear() { size_ = 0; }

  T* data() { return host_.empty() ? reinterpret_cast<T*>(device_.data()) : host_.data(); }
  const T* data() const {
    return host_.empty() ? reinterpret_cast<const T*>(device_.data()) : host_.data();
  }
  int64_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  int64_t bytes() const { return capacity_ * static_cast<int64_t>(sizeof(T)); }  // that it holds

 private:
  void swap(Buffer& other) noexcept {
    std::swap(host_, other.host_);
    std::swap(device_, other.device_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }

  std::vector<T> host_;
  DeviceBuffer device_;
  int64_t size_ = 0, capacity_ = 0;
};

}  // namespace tamis
