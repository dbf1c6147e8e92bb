#include "tensor/cuda/device.h"

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

#include "base/error.h"
#include "tensor/cuda/check.h"

namespace tamis {
namespace {

constexpr int kOldestSm = 80;

std::string gib(int64_t bytes) {
  const int64_t tenths = (bytes * 10 + (int64_t{1} << 29)) >> 30;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " GiB";
}

const char* advice(cudaError_t code) {
  switch (code) {
    case cudaErrorInsufficientDriver:
      return "; this machine has no NVIDIA driver, or one older than this build's CUDA: install a "
             "newer driver, or run with --backend cpu";
    case cudaErrorNoDevice:
      return "; no NVIDIA GPU is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES, or run with "
             "--backend cpu";
    case cudaErrorMemoryAllocation:
      return "; the device is out of memory: take fewer or shorter sequences (--max-context), or "
             "end other programs on the device (nvidia-smi)";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorJitCompilationDisabled:
    case cudaErrorInvalidDeviceFunction:
      return "; this build has no code for this GPU: configure with its capability in "
             "TAMIS_CUDA_ARCHS";
    case cudaErrorUnsupportedPtxVersion:
      return "; the driver is older than this build's CUDA: install a newer driver";
    default:
      return "";
  }
}

DeviceInfo describe(int ordinal) {
  cudaDeviceProp p;
  check_cuda(cudaGetDeviceProperties(&p, ordinal), "cudaGetDeviceProperties");
  DeviceInfo d;
  d.ordinal = ordinal;
  std::snprintf(d.name, sizeof(d.name), "%s", p.name);
  d.sm = p.major * 10 + p.minor;
  d.multiprocessors = p.multiProcessorCount;
  d.total_bytes = static_cast<int64_t>(p.totalGlobalMem);
  return d;
}

}  // namespace

void check_cuda(cudaError_t code, const std::string& what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // an error that does not stick must not be found again by the next call
  throw DeviceError("CUDA: " + what + ": " + cudaGetErrorString(code) + advice(code));
}

bool cuda_built() { return true; }

std::vector<DeviceInfo> cuda_devices() {
  int count = 0;
  check_cuda(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  std::vector<DeviceInfo> devices;
  std::string refused;
  for (int i = 0; i < count; ++i) {
    const DeviceInfo d = describe(i);
    if (d.sm >= kOldestSm) {
      devices.push_back(d);
    } else {
      refused += std::string(" ") + d.name + " (sm_" + std::to_string(d.sm) + ")";
    }
  }
  if (devices.empty()) {
    throw DeviceError("CUDA: no GPU of compute capability 8.0 or later, only" + refused +
                      "; run with --backend cpu");
  }
  return devices;
}

DeviceContext::DeviceContext(int ordinal) {
  for (const DeviceInfo& d : cuda_devices()) {
    if (d.ordinal == ordinal) info_ = d;
  }
  if (info_.sm == 0) {
    throw DeviceError("CUDA: device " + std::to_string(ordinal) +
                      " does not exist or is older than compute capability 8.0");
  }
  check_cuda(cudaSetDevice(ordinal), "cudaSetDevice");
  size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  info_.free_bytes = static_cast<int64_t>(free);
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
}

DeviceContext::~DeviceContext() {
  cudaStreamSynchronize(stream_);
  for (void* p : scratch_) cudaFree(p);
  cudaStreamDestroy(stream_);
}

void* DeviceContext::scratch(int slot, int64_t bytes) {
  int64_t& have = scratch_bytes_[slot];
  if (have < bytes) {
    // cudaFree waits for the device, so nothing on the stream still reads the old memory.
    check_cuda(cudaFree(scratch_[slot]), "cudaFree");
    scratch_[slot] = nullptr;
    have = 0;
    check_cuda(cudaMalloc(&scratch_[slot], static_cast<size_t>(bytes)),
               "cudaMalloc of " + std::to_string(bytes) + " bytes (work space)");
    have = bytes;
  }
  return scratch_[slot];
}

int64_t DeviceContext::scratch_bytes() const {
  int64_t sum = 0;
  for (const int64_t bytes : scratch_bytes_) sum += bytes;
  return sum;
}

void DeviceContext::upload(void* device, const void* host, int64_t bytes) {
  if (bytes == 0) return;
  check_cuda(
      cudaMemcpyAsync(device, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_),
      "cudaMemcpyAsync to the device");
}

void DeviceContext::download(void* host, const void* device, int64_t bytes) {
  if (bytes == 0) return;
  check_cuda(
      cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_),
      "cudaMemcpyAsync to the host");
  synchronize();
}

void DeviceContext::copy(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  check_cuda(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_),
      "cudaMemcpyAsync on the device");
}

void DeviceContext::fill(void* device, int byte, int64_t bytes) {
  if (bytes == 0) return;
  check_cuda(cudaMemsetAsync(device, byte, static_cast<size_t>(bytes), stream_), "cudaMemsetAsync");
}

void DeviceContext::synchronize() {
  check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
}

DeviceBuffer::DeviceBuffer(DeviceContext& device, int64_t bytes, const char* purpose)
    : bytes_(bytes) {
  if (bytes == 0) return;
  void* p = nullptr;
  const cudaError_t code = cudaMalloc(&p, static_cast<size_t>(bytes));
  if (code != cudaSuccess) {
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    check_cuda(code, "cudaMalloc of " + gib(bytes) + " for " + purpose + " on " +
                         device.info().name + " (" + gib(static_cast<int64_t>(free)) + " of " +
                         gib(static_cast<int64_t>(total)) + " are free)");
  }
  data_ = static_cast<std::byte*>(p);
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

DeviceBuffer::~DeviceBuffer() { cudaFree(data_); }

PinnedBuffer::PinnedBuffer(DeviceContext&, int64_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* p = nullptr;
  check_cuda(cudaMallocHost(&p, static_cast<size_t>(bytes)),
             "cudaMallocHost of " + std::to_string(bytes) + " bytes");
  data_ = static_cast<std::byte*>(p);
}

PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

PinnedBuffer::~PinnedBuffer() { cudaFreeHost(data_); }

}  // namespace tamis
