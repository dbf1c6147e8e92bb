#include "train/schedule.h"

#include <cmath>
#include <numbers>

namespace tamis {

double Schedule::factor(int64_t step, int64_t steps) const {
  if (step < warmup) return static_cast<double>(step + 1) / static_cast<double>(warmup);
  const auto left = static_cast<double>(steps - step), all = static_cast<double>(steps - warmup);
  switch (kind) {
    case Kind::kConstant:
      return 1;
    case Kind::kCosine:
      return end + (1 - end) * (1 + std::cos(std::numbers::pi * (1 - left / all))) / 2;
    case Kind::kWarmupStableDecay: {
      const double falling = decay * static_cast<double>(steps);
      return left >= falling ? 1 : end + (1 - end) * left / falling;
    }
  }
  return 1;
}

}  // namespace tamis
