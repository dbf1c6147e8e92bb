// Named shapes of the projections, for the operation benchmarks.
#pragma once

#include <cstdint>

namespace tamis::bench {

// y [m, rows] = x [m, cols] W^T.
struct LinearShape {
  const char* name;
  int64_t cols, rows;
};

// The 0.73B model of bench/make_cpu_model.py, and DeepSeek-V3.2.
constexpr LinearShape kLinearShapes[] = {
    {"small_q_a", 1024, 512},        {"small_q_b", 512, 3072},       {"small_o", 2048, 1024},
    {"small_expert_up", 1024, 512},  {"small_dense_up", 1024, 3072}, {"small_head", 1024, 32768},
    {"v32_q_a", 7168, 1536},         {"v32_q_b", 1536, 24576},       {"v32_expert_up", 7168, 2048},
    {"v32_expert_down", 2048, 7168},
};

}  // namespace tamis::bench
