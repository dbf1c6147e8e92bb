// Turns a CUDA error code into DeviceError. For files that include CUDA headers anyway.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace tamis {

// DeviceError("WHAT: the CUDA runtime's text; what to do") unless `code` is cudaSuccess.
void check_cuda(cudaError_t code, const std::string& what);

}  // namespace tamis
