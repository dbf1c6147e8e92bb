#include <string>

#include "kernels/cuda/device_code.h"
#include "kernels/cuda/launch.cuh"
#include "tensor/cuda/check.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

__global__ void probe_kernel() {}

}  // namespace

void check_device_code(const DeviceContext& device) {
  const DeviceInfo& d = device.info();
  cudaFuncAttributes attributes;
  check_cuda(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe_kernel)),
             std::string("looking for code for ") + d.name + " (sm_" + std::to_string(d.sm) + ")");
}

cudaStream_t stream_of(KernelContext& context) { return context.device()->stream(); }

void* device_scratch(KernelContext& context, int slot, int64_t bytes) {
  return context.device()->scratch(slot, bytes);
}

void check_launch(const char* kernel) {
  check_cuda(cudaGetLastError(), std::string("launch of ") + kernel);
}

void allow_shared(const void* kernel, int bytes, const char* name) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             std::string("cudaFuncSetAttribute of ") + name + " (" + std::to_string(bytes) +
                 " bytes of shared memory)");
}

int most_shared() {
  constexpr int kLeast = 99 * 1024;
  int device = 0, bytes = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                            device) == cudaSuccess;
  if (!known) cudaGetLastError();  // no device: whoever launches says so
  return known ? bytes : kLeast;
}

}  // namespace tamis
