// AdamW over the groups of a ParameterTable, each with its own settings, clip and step clock, and
// the router's bias rule.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/context.h"
#include "train/parameters.h"

namespace tamis {

struct AdamwSettings {
  double learning_rate = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, decay = 0.1;
  double clip = 1;  // largest norm of the group's gradient; 0: no clip
};

class Optimizer {
 public:
  explicit Optimizer(const ParameterTable& table);  // kept by reference

  double gradient_norm(KernelContext& context, ParameterGroup group, const float* gradients) const;

  // Moves the tensors of `group` by one step and returns the norm of their gradient before the
  // clip. A norm that is not finite moves nothing, moments and clock included.
  double step(KernelContext& context, ParameterGroup group, const AdamwSettings& settings,
              float* weights, const float* gradients);

  // Moments in the layout of the table, and the steps that a group has made: what a checkpoint
  // keeps.
  std::vector<float>& first() { return first_; }
  std::vector<float>& second() { return second_; }
  int64_t& clock(ParameterGroup group) { return clocks_[static_cast<size_t>(group)]; }

 private:
  const ParameterTable& table_;
  std::vector<float> first_, second_;
  int64_t clocks_[3] = {};
};

// bias_e += gamma sign(mean(load) - load_e) for every layer with experts (DeepSeek-V3
// report, 2.1.2); load [layers][experts] counts tokens.
void update_router_biases(const ParameterTable& table,
                          const std::vector<std::vector<int64_t>>& load, double gamma,
                          float* weights);

}  // namespace tamis
