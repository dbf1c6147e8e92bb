// What this machine can do at most: the limits that measured operations are held against.
#pragma once

#include "kernels/context.h"

namespace tamis {

struct MachinePeak {
  double read_bytes_per_second = 0;  // a plain loop of loads over memory that no cache holds
  double flops = 0;                  // fused multiply-adds on registers, two operations each
};

// With the context's threads; takes about half a second. The best of several short runs, because
// a disturbance only ever slows one down.
MachinePeak measure_peak(KernelContext& context);

// Bytes of memory that pushes everything else out of the caches.
int64_t cache_flush_bytes();

}  // namespace tamis
