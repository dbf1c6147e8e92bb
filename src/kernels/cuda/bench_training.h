// The workloads of training, a part of cuda_workloads().
#pragma once

#include <vector>

#include "kernels/workloads/cuda_workloads.h"

namespace tamis {

std::vector<CudaWorkload> training_workloads();

}  // namespace tamis
