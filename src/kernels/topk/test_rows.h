// Rows of scores for the tests of topk. Test code only.
#pragma once

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace tamis {

// Distributions that have broken selection elsewhere.
inline std::vector<float> scores_of(int kind, int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    float& v = x[static_cast<size_t>(i)];
    switch (kind) {
      case 0:
        v = normal(random);
        break;
      case 1:
        v = 0.25f;
        break;  // all equal
      case 2:
        v = std::max(0.0f, normal(random));
        break;  // the plateau of a ReLU
      case 3:
        v = 1.0f + static_cast<float>(random() % 512) * 0x1p-23f;
        break;  // one narrow range
      case 4:
        v = random() % 2 == 0 ? 0.0f : -0.0f;
        break;
      case 5:
        v = static_cast<float>(i);
        break;
      case 6:
        v = static_cast<float>(-i);
        break;
      case 7:
        v = random() % 3 == 0   ? std::numeric_limits<float>::infinity()
            : random() % 2 == 0 ? -std::numeric_limits<float>::infinity()
                                : normal(random);
        break;
      case 8:
        v = random() % 5 == 0 ? NAN : normal(random);
        break;
      case 9:
        v = random() % 2 == 0 ? NAN : -std::numeric_limits<float>::infinity();
        break;
      case 10:
        v = std::ldexp(normal(random), static_cast<int>(random() % 200) - 100);
        break;
      case 11:
        v = i % 64 == 0 ? 100.0f + normal(random) : normal(random);
        break;  // misleads samples
      default:
        v = std::bit_cast<float>(static_cast<uint32_t>(random()));
        break;
    }
  }
  return x;
}
constexpr int kScoreKinds = 13;

}  // namespace tamis
