// CUDA devices without CUDA headers: what the engine, the model and the commands need of them.
//
//   DeviceContext device(0);
//   DeviceBuffer weights(device, bytes);
//   device.upload(weights.data(), host, bytes);   ordered on the device's stream
//   device.synchronize();
//
// In a build without CUDA every function here throws DeviceError saying how to get one. All other
// failures are DeviceError too: the message names the failing call and what to do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

struct CUstream_st;

namespace tamis {

struct DeviceInfo {
  int ordinal = 0;
  char name[256] = {};
  int sm = 0;  // compute capability, 90 for 9.0
  int multiprocessors = 0;
  int64_t total_bytes = 0, free_bytes = 0;
};

// True if this build has the CUDA back end.
bool cuda_built();

// The devices that this build can run on. DeviceError if there is none: no driver, a driver that is
// too old, no GPU, or only GPUs below sm_80.
std::vector<DeviceInfo> cuda_devices();

// One device and the stream on which everything of one engine runs, in order. Not copied.
class DeviceContext {
 public:
  static constexpr int kSlots = 16;

  explicit DeviceContext(int ordinal = 0);
  ~DeviceContext();
  DeviceContext(const DeviceContext&) = delete;
  DeviceContext& operator=(const DeviceContext&) = delete;

  const DeviceInfo& info() const { return info_; }
  CUstream_st* stream() const { return stream_; }

  // At least `bytes` of device memory, 256-byte aligned, contents undefined. Grows to the largest
  // request and stays. Valid until the next call for the same slot; work already on the stream
  // keeps what it was given, so two operations may use the same slot one after the other.
  void* scratch(int slot, int64_t bytes);
  int64_t scratch_bytes() const;

  // Copies ordered on the stream. Host memory that is not pinned is free again on return; pinned
  // memory must stay as it is until the stream has passed.
  void upload(void* device, const void* host, int64_t bytes);
  // Waits: the values are there on return.
  void download(void* host, const void* device, int64_t bytes);
  void copy(void* to, const void* from, int64_t bytes);
  void fill(void* device, int byte, int64_t bytes);
  void synchronize();

 private:
  DeviceInfo info_;
  CUstream_st* stream_ = nullptr;
  void* scratch_[kSlots] = {};
  int64_t scratch_bytes_[kSlots] = {};
};

// Device memory taken once. DeviceError, saying how much was asked for and is free, when it cannot
// be had. The context must outlive it.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(DeviceContext& device, int64_t bytes, const char* purpose);
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Host memory that the device reads and writes at full speed.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(DeviceContext& device, int64_t bytes);
  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  ~PinnedBuffer();

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace tamis
