// Which implementations ran.
#pragma once

#include <string>
#include <vector>

#include "kernels/context.h"

namespace tamis {

// A line each, "mla_sparse: simd", in the order of their first runs.
std::vector<std::string> explain(const KernelContext& context);

}  // namespace tamis
