// The arithmetic of sampling, the same on the host and on a device: IEEE operations one by one.
#pragma once

#include <cstdint>

#include "kernels/sample/sample.h"

namespace tamis {

constexpr uint64_t kBestWeight = uint64_t{1} << 44;
constexpr int64_t kMostSampled = int64_t{1} << 20;  // sums stay below 2^64

// kBestWeight exp((logit - best) / temperature), rounded down; logit <= best. 0 for what is not a
// number.
constexpr uint64_t sample_weight(float logit, float best, float temperature) {
  const double x =
      (static_cast<double>(logit) - static_cast<double>(best)) / static_cast<double>(temperature);
  if (!(x > -31)) return 0;  // exp(-31) 2^44 < 1
  // exp(x) = 2^(n + f), -1 < f <= 0, by the Taylor series of exp(f ln 2): the error of 14 terms is
  // below 2^-44 of the value.
  const double y = x * 1.4426950408889634;
  const auto n = static_cast<int64_t>(y);
  const double z = (y - static_cast<double>(n)) * 0.69314718055994531;
  double p = 1;
  for (int i = 14; i > 0; --i) p = 1 + p * (z / i);
  return static_cast<uint64_t>(p * static_cast<double>(kBestWeight)) >> -n;
}

// The least weight that min_p lets pass.
constexpr uint64_t least_weight(float min_p) {
  const double least = static_cast<double>(min_p) * static_cast<double>(kBestWeight);
  const auto floor = static_cast<uint64_t>(least);
  return floor + (static_cast<double>(floor) < least ? 1 : 0);
}

// What weights must reach to be top_p of `total`: 1 .. total, unless that is 0.
constexpr uint64_t wanted_weight(float top_p, uint64_t total) {
  const double wanted = static_cast<double>(top_p) * static_cast<double>(total);
  if (!(wanted < static_cast<double>(total))) return total;
  const auto floor = static_cast<uint64_t>(wanted);
  const uint64_t ceiling = floor + (static_cast<double>(floor) < wanted ? 1 : 0);
  return ceiling < total ? ceiling : total;
}

// random / 2^64 of `kept`, rounded down.
constexpr uint64_t scaled_random(uint64_t random, uint64_t kept) {
  const uint64_t a = random >> 32, b = random & 0xFFFFFFFF, c = kept >> 32, d = kept & 0xFFFFFFFF;
  const uint64_t middle = a * d + (b * d >> 32), low = b * c + (middle & 0xFFFFFFFF);
  return a * c + (middle >> 32) + (low >> 32);
}

constexpr float edited_logit(float logit, const SampleEdit& e, const SampleRow& row) {
  if (e.bias != 0) logit += e.bias;
  if (e.seen != 0) logit = logit > 0 ? logit / row.repetition : logit * row.repetition;
  if (e.count != 0) logit -= row.presence + row.frequency * static_cast<float>(e.count);
  return logit;
}

}  // namespace tamis
