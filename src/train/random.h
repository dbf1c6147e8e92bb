// Random numbers that are a function of a seed and a stream, so that nothing has to be kept to go
// on from the middle: splitmix64 (Steele, Lea and Flood) started at a mix of the two.
#pragma once

#include <cstdint>

namespace tamis {

class Random {
 public:
  Random(uint64_t seed, uint64_t stream) : state_(mix(seed) ^ mix(stream + kStep)) {}

  uint64_t next() { return mix(state_ += kStep); }
  // In [0, 1), 53 bits.
  double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  // In [0, n), n >= 1. The bias of one division, below 2^-40 for any n up to 2^24.
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }

 private:
  static constexpr uint64_t kStep = 0x9E3779B97F4A7C15u;
  static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  uint64_t state_;
};

}  // namespace tamis
