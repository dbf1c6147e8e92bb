#include <string>

#include "kernels/cuda/launch.cuh"
#include "tensor/cuda/check.h"

namespace tamis {

void check_launch(const char* kernel) {
  check_cuda(cudaGetLastError(), std::string("launch of ") + kernel);
}

void allow_shared(const void* kernel, int bytes, const char* name) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             std::string("cudaFuncSetAttribute of ") + name + " (" + std::to_string(bytes) +
                 " bytes of shared memory)");
}

}  // namespace tamis
