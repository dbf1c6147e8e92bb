// How fast one operation runs on this machine, and how near that is to the machine's limit.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/machine_peak.h"
#include "kernels/workloads/workloads.h"

namespace tamis {

struct OpSpeedOptions {
  double seconds = 0.05;  // time spent on a workload at least, besides its preparation
  int64_t repeat = 3;     // runs at least; the median counts
  bool warm = false;      // operands stay in the caches from one run to the next
};

struct OpSpeed {
  double microseconds = 0;
  double gigabytes_per_second = 0, gigaflops = 0;
  // The time that memory, or arithmetic, would take at the machine's limit over the time taken;
  // the larger of the two. Warm operands may exceed 1 of memory.
  double share = 0;
  bool memory_bound = false;
  std::string implementation;  // of the operation, "" where there is one only
};

OpSpeed measure_op(KernelContext& context, const Workload& workload, const MachinePeak& peak,
                   const OpSpeedOptions& options);

}  // namespace tamis
