// AdamW over the groups of a ParameterTable, or over parts of them, each with its own settings,
// clip and step clock, and the router's bias rule.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/buffer.h"
#include "kernels/context.h"
#include "train/parameters.h"

namespace tamis {

struct AdamwSettings {
  double learning_rate = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, decay = 0.1;
  double clip = 1;  // largest norm of the group's gradient; 0: no clip
};

class Optimizer {
 public:
  using Parts = std::array<ParameterTable::Range, 3>;              // of each group
  Optimizer(KernelContext& context, const ParameterTable& table);  // of all of each group
  Optimizer(KernelContext& context, const Parts& parts);

  // Moves the part of `group` by one step: w, g [part]; norm is of the whole group's gradient. One
  // that is not finite moves nothing, moments and clock included.
  void step(KernelContext& context, ParameterGroup group, const AdamwSettings& settings,
            double norm, float* w, const float* g);

  // Moments [part], and the steps that a group has made: what a checkpoint keeps.
  Buffer<float>& first(ParameterGroup group) { return first_[static_cast<size_t>(group)]; }
  Buffer<float>& second(ParameterGroup group) { return second_[static_cast<size_t>(group)]; }
  int64_t& clock(ParameterGroup group) { return clocks_[static_cast<size_t>(group)]; }

 private:
  Buffer<float> first_[3], second_[3];
  int64_t clocks_[3] = {};
};

// bias_e += gamma sign(mean(load) - load_e) for every layer with experts (DeepSeek-V3
// report, 2.1.2); load [layers][experts] counts tokens.
void update_router_biases(KernelContext& context, const ParameterTable& table,
                          const std::vector<std::vector<int64_t>>& load, double gamma,
                          float* weights);

}  // namespace tamis
