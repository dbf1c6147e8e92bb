// The learning rate over the steps of a stage, as a factor of its peak.
#pragma once

#include <cstdint>

namespace tamis {

struct Schedule {
  enum class Kind : uint8_t { kConstant, kCosine, kWarmupStableDecay } kind = Kind::kConstant;
  int64_t warmup = 0;  // steps of a linear rise, before everything else
  double decay =
      0.2;           // kWarmupStableDecay: the share of the steps in which the rate falls linearly
  double end = 0.1;  // the factor at the end (kCosine, kWarmupStableDecay)

  // Of step `step` (from 0) of `steps`.
  double factor(int64_t step, int64_t steps) const;
};

}  // namespace tamis
