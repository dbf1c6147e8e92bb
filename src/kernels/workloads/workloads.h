// The named shapes of bench/workloads.h as work that can be timed: each entry makes its own random
// operands and runs one operation on them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/context.h"

namespace tamis {

struct Workload {
  std::string op, shape;
  // What the operation must move at least, each operand counted once, and its multiplications and
  // additions.
  double bytes = 0, flops = 0;
  // Allocates and fills the operands (up to some 100 MB) and returns the call. The operands live
  // as long as the returned function.
  std::function<std::function<void(KernelContext&)>()> prepare;
};

// Every named shape, operations in the order of their names.
std::vector<Workload> all_workloads();

}  // namespace tamis
