// The named shapes of bench/workloads.h for a GPU: operands made on the device, calls timed there.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/context.h"

namespace tamis {

struct CudaWorkload {
  std::string op, shape;
  // What the operation must move at least, each operand counted once, and its multiplications and
  // additions. `flops` 0: comparisons only.
  double bytes = 0, flops = 0;
  // Makes `sets` sets of random operands, and returns the call that works on set i. They live as
  // long as the returned function.
  std::function<std::function<void(KernelContext&, int set)>(KernelContext&, int sets)> prepare;
};

// Every shape, operations in the order of bench/workloads.h.
std::vector<CudaWorkload> cuda_workloads();

// What the device reaches at most through the instructions that the portable kernels use.
struct CudaPeak {
  double bytes_per_second = 0;  // copying device memory, bytes read and written
  double flops = 0;             // bf16 products, mma.sync, operands in registers
};
CudaPeak measure_cuda_peak(KernelContext& context);

// Microseconds of one call: the median over replays of a graph of calls, each on the next set of
// operands; there are enough sets that the L2 cache holds none when its turn comes.
double measure_cuda(KernelContext& context, const CudaWorkload& workload);

}  // namespace tamis
