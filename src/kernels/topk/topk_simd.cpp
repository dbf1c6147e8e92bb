// Exact top-k of a row by narrowing the interval of the k-th largest key. docs/kernels/topk.md.
//
// Scores become signed integers in the same order (NaN the least). Each step counts the keys that
// are not below a pivot, which halves the interval at least every second time; when half of the
// keys left the interval, the others are packed together. No distribution is slow: the interval is
// 32 bits wide, so there are at most kSampledPivots + 32 counts. No allocation.
#include "kernels/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/topk/topk_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
// foreach_target.h reads this file once per instruction set: what follows is not in alphabetical
// order on purpose.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "kernels/topk/topk_impl.h"

HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using IntTag = hn::ScalableTag<int32_t>;
using IntVec = hn::Vec<IntTag>;
constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(IntTag()));
constexpr int32_t kNanKey = std::numeric_limits<int32_t>::min();
constexpr int64_t kSample = 64;
constexpr int kSampledPivots = 6;

// Adding +0 makes -0 into 0; negative floats count downwards, so their bits are turned around.
HWY_INLINE IntVec order_keys(const float* scores) {
  const hn::RebindToFloat<IntTag> df;
  const IntTag di;
  const auto x = hn::Add(hn::LoadU(df, scores), hn::Zero(df));
  const IntVec bits = hn::BitCast(di, x);
  const IntVec turn = hn::And(hn::ShiftRight<31>(bits), hn::Set(di, 0x7FFFFFFF));
  const IntVec nan = hn::BitCast(di, hn::VecFromMask(df, hn::IsNaN(x)));
  return hn::IfVecThenElse(nan, hn::Set(di, kNanKey), hn::Xor(bits, turn));
}

int32_t order_key(float x) {
  if (std::isnan(x)) return kNanKey;
  x += 0.0f;
  int32_t bits;
  hwy::CopyBytes<4>(&x, &bits);
  return bits ^ (bits < 0 ? 0x7FFFFFFF : 0);
}

struct Interval {
  int32_t low, high;  // of keys, both included
};

// Keys of a row, and their least and greatest.
Interval make_keys(const float* scores, int64_t n, int32_t* HWY_RESTRICT keys) {
  const IntTag d;
  Interval range{std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()};
  int64_t i = 0;
  if (n >= kLanes) {
    IntVec low = hn::Set(d, range.low), high = hn::Set(d, range.high);
    for (; i + kLanes <= n; i += kLanes) {
      const IntVec key = order_keys(scores + i);
      hn::StoreU(key, d, keys + i);
      low = hn::Min(low, key);
      high = hn::Max(high, key);
    }
    range = {hn::GetLane(hn::MinOfLanes(d, low)), hn::GetLane(hn::MaxOfLanes(d, high))};
  }
  for (; i < n; ++i) {
    keys[i] = order_key(scores[i]);
    range = {std::min(range.low, keys[i]), std::max(range.high, keys[i])};
  }
  return range;
}

int64_t count_at_least(const int32_t* HWY_RESTRICT keys, int64_t n, int32_t pivot) {
  const IntTag d;
  const IntVec p = hn::Set(d, pivot);
  int64_t i = 0, count = 0;
  // A mask is -1 where true; lanes cannot overflow, a row has fewer than 2^31 keys.
  IntVec below0 = hn::Zero(d), below1 = below0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    below0 = hn::Add(below0, hn::VecFromMask(d, hn::Lt(hn::LoadU(d, keys + i), p)));
    below1 = hn::Add(below1, hn::VecFromMask(d, hn::Lt(hn::LoadU(d, keys + i + kLanes), p)));
  }
  count = i + hn::GetLane(hn::SumOfLanes(d, hn::Add(below0, below1)));
  for (; i < n; ++i) count += keys[i] >= pivot ? 1 : 0;
  return count;
}

// The bits of a mask, lane 0 lowest.
template <class M>
HWY_INLINE uint64_t mask_bits(M mask) {
  uint8_t bytes[8] = {};
  hn::StoreMaskBits(IntTag(), mask, bytes);
  uint64_t bits;
  hwy::CopyBytes<8>(bytes, &bits);
  return bits;
}

HWY_INLINE int64_t lowest_bit(uint64_t bits) {
  return static_cast<int64_t>(hwy::Num0BitsBelowLS1Bit_Nonzero64(bits));
}

// Packs the keys inside the interval to the front, in order; returns how many there are. Few are
// kept, so one store for each is cheap. (CompressStore of Highway 1.0.3 copies its 1 KiB table to
// the stack in every call when built by GCC 12: six times slower.)
int64_t pack(int32_t* keys, int64_t n, const Interval& range) {
  const IntTag d;
  const IntVec low = hn::Set(d, range.low), high = hn::Set(d, range.high);
  int64_t i = 0, out = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const IntVec key = hn::LoadU(d, keys + i);
    uint64_t bits = mask_bits(hn::Not(hn::Or(hn::Lt(key, low), hn::Gt(key, high))));
    for (; bits != 0; bits &= bits - 1) keys[out++] = keys[i + lowest_bit(bits)];
  }
  for (; i < n; ++i) {
    const int32_t key = keys[i];
    if (key >= range.low && key <= range.high) keys[out++] = key;
  }
  return out;
}

int32_t midpoint(const Interval& range) {
  const int64_t sum = static_cast<int64_t>(range.low) + range.high + 1;
  return static_cast<int32_t>(sum >> 1);  // rounded up: low < midpoint <= high
}

// A guess at the key of rank `rank` of n, from every (n/64)th key: somewhat above it or below it.
int32_t sampled_pivot(const int32_t* keys, int64_t n, int64_t rank, bool above) {
  std::array<int32_t, kSample> sample;
  for (int64_t i = 0; i < kSample; ++i) sample[static_cast<size_t>(i)] = keys[i * n / kSample];
  std::sort(sample.begin(), sample.end(), std::greater<>());
  const double share = static_cast<double>(rank) / static_cast<double>(n);
  const double slack = 1.5 * std::sqrt(kSample * share * (1 - share)) + 1;
  const double at = kSample * share + (above ? -slack : slack);
  return sample[static_cast<size_t>(std::clamp<double>(at, 0, kSample - 1))];
}

// What to take: every key above `key`, and of those equal to it the first `ties`.
struct Threshold {
  int32_t key;
  int64_t ties;
};

// The k-th largest of n keys, 0 < k < n. Destroys their order and number.
Threshold find_threshold(int32_t* keys, int64_t n, int64_t k, Interval range) {
  int64_t at_least_low = n, above_high = 0;  // how many of the keys left
  int sampled = 0;
  while (range.low < range.high) {
    int32_t pivot = midpoint(range);
    if (sampled < kSampledPivots && n >= 4 * kSample) {
      const int32_t guess = sampled_pivot(keys, n, k, sampled % 2 == 0);
      if (guess > range.low && guess <= range.high) pivot = guess;
      ++sampled;
    }
    const int64_t count = count_at_least(keys, n, pivot);
    if (count == k) return {pivot, k};  // exactly the keys from the pivot up
    if (count > k) {
      range.low = pivot;
      at_least_low = count;
    } else {
      range.high = pivot - 1;
      above_high = count;
    }
    if (2 * (at_least_low - above_high) <= n) {
      k -= above_high;
      at_least_low = n = pack(keys, n, range);
      above_high = 0;
    }
  }
  return {range.low, k - above_high};
}

// Positions whose key is above the threshold, or one of the first ties; exactly n of them.
void emit(const float* scores, int64_t length, Threshold threshold, int64_t n,
          int32_t* HWY_RESTRICT indices) {
  const IntTag d;
  const IntVec key = hn::Set(d, threshold.key);
  int64_t i = 0, out = 0;
  const auto take = [&](int64_t position, bool equal) {
    if (equal && threshold.ties-- <= 0) return;
    indices[out++] = static_cast<int32_t>(position);
  };
  for (; i + kLanes <= length && out < n; i += kLanes) {
    const IntVec keys = order_keys(scores + i);
    uint64_t bits = mask_bits(hn::Not(hn::Lt(keys, key)));
    const uint64_t equal = mask_bits(hn::Eq(keys, key));
    for (; bits != 0; bits &= bits - 1) {
      take(i + lowest_bit(bits), (equal & bits & (~bits + 1)) != 0);
    }
  }
  for (; i < length && out < n; ++i) {
    const int32_t x = order_key(scores[i]);
    if (x >= threshold.key) take(i, x == threshold.key);
  }
}

bool row(const float* scores, int64_t length, int64_t k, float* work, int32_t* indices) {
  const int64_t n = std::min(k, length);
  auto* keys = reinterpret_cast<int32_t*>(work);
  const Interval range = make_keys(scores, length, keys);
  if (n == length) {
    for (int64_t i = 0; i < n; ++i) indices[i] = static_cast<int32_t>(i);
  } else if (n > 0) {
    const Threshold threshold = find_threshold(keys, length, n, range);
    emit(scores, length, threshold, n, indices);
  }
  std::fill(indices + n, indices + k, -1);
  return length == 0 || range.low != kNanKey;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tamis {

HWY_EXPORT(row);

bool topk_row(const float* scores, int64_t length, int64_t k, float* work, int32_t* indices) {
  return HWY_DYNAMIC_DISPATCH(row)(scores, length, k, work, indices);
}

void topk_simd(KernelContext& context, const TopkArgs& a) {
  context.pool().run(a.rows, [&](int64_t r, int thread) {
    float* work = context.scratch(thread, 0, a.lengths[r]);
    const bool clean =
        topk_row(a.scores + r * a.score_stride, a.lengths[r], a.k, work, a.indices + r * a.k);
    if (a.has_nan != nullptr) a.has_nan[r] = clean ? 0 : 1;
  });
}

}  // namespace tamis
#endif  // HWY_ONCE
