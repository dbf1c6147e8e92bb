#include "kernels/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/machine_peak_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
// foreach_target.h reads this file once per instruction set.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "hwy/highway.h"
#include "kernels/machine_peak.h"

HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// A dozen independent sums: a multiply-add takes four cycles and two start in each, so eight would
// do. Returns the number of operations; `sink` keeps the compiler from dropping them.
double multiply_add(int64_t rounds, float* sink) {
  const hn::ScalableTag<float> d;
  // Different numbers: equal sums would be computed once.
  const auto start = [&](int i) HWY_ATTR { return hn::Set(d, sink[i]); };
  const auto x = start(12), y = start(13);
  auto a0 = start(0), a1 = start(1), a2 = start(2), a3 = start(3), a4 = start(4), a5 = start(5);
  auto a6 = start(6), a7 = start(7), a8 = start(8), a9 = start(9), b0 = start(10), b1 = start(11);
  for (int64_t i = 0; i < rounds; ++i) {
    a0 = hn::MulAdd(a0, x, y), a1 = hn::MulAdd(a1, x, y), a2 = hn::MulAdd(a2, x, y);
    a3 = hn::MulAdd(a3, x, y), a4 = hn::MulAdd(a4, x, y), a5 = hn::MulAdd(a5, x, y);
    a6 = hn::MulAdd(a6, x, y), a7 = hn::MulAdd(a7, x, y), a8 = hn::MulAdd(a8, x, y);
    a9 = hn::MulAdd(a9, x, y), b0 = hn::MulAdd(b0, x, y), b1 = hn::MulAdd(b1, x, y);
  }
  const auto low = hn::Add(hn::Add(hn::Add(a0, a1), hn::Add(a2, a3)), hn::Add(a4, a5));
  const auto high = hn::Add(hn::Add(hn::Add(a6, a7), hn::Add(a8, a9)), hn::Add(b0, b1));
  sink[0] = hn::GetLane(hn::SumOfLanes(d, hn::Add(low, high)));
  return 12.0 * 2.0 * static_cast<double>(rounds) * static_cast<double>(hn::Lanes(d));
}

void read_block(const float* p, int64_t n, float* sink) {
  const hn::ScalableTag<float> d;
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  constexpr int64_t kAhead = 2048;  // floats: where the hardware prefetcher stops at a page
  auto a = hn::Zero(d), b = a, c = a, e = a;
  for (int64_t i = 0; i + 4 * step <= n; i += 4 * step) {
    for (int64_t k = 0; k < 4 * step; k += 16) __builtin_prefetch(p + i + kAhead + k);
    a = hn::Add(a, hn::LoadU(d, p + i));
    b = hn::Add(b, hn::LoadU(d, p + i + step));
    c = hn::Add(c, hn::LoadU(d, p + i + 2 * step));
    e = hn::Add(e, hn::LoadU(d, p + i + 3 * step));
  }
  sink[0] = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(a, b), hn::Add(c, e))));
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tamis {
namespace {

HWY_EXPORT(multiply_add);
HWY_EXPORT(read_block);

template <typename Work>
double seconds(const Work& work) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double peak_flops(KernelContext& context) {
  constexpr int64_t kRounds = 1 << 19;
  const int64_t threads = context.pool().num_threads();
  std::vector<float> sinks(static_cast<size_t>(threads * 16));
  double best = 0;
  for (int run = 0; run < 12; ++run) {
    double operations = 0;
    const double time = seconds([&] {
      context.pool().run(threads, [&](int64_t i, int) {
        float* sink = &sinks[static_cast<size_t>(i * 16)];
        for (int k = 0; k < 16; ++k) sink[k] = 0.5F / static_cast<float>(k + 1);
        const double done = HWY_DYNAMIC_DISPATCH(multiply_add)(kRounds, sink);
        if (i == 0) operations = done;
      });
    });
    best = std::max(best, operations * static_cast<double>(threads) / time);
  }
  return best;
}

double peak_read(KernelContext& context) {
  constexpr int64_t kBlock = 1 << 16;  // floats
  const int64_t floats = cache_flush_bytes() / 4, blocks = floats / kBlock;
  const std::vector<float> memory(static_cast<size_t>(floats), 1.0F);
  std::vector<float> sinks(static_cast<size_t>(blocks * 16));
  double best = 0;
  for (int run = 0; run < 5; ++run) {
    const double time = seconds([&] {
      context.pool().run(blocks, [&](int64_t b, int) {
        HWY_DYNAMIC_DISPATCH(read_block)
        (memory.data() + b * kBlock, kBlock, &sinks[static_cast<size_t>(b * 16)]);
      });
    });
    best = std::max(best, static_cast<double>(blocks * kBlock * 4) / time);
  }
  return best;
}

}  // namespace

int64_t cache_flush_bytes() {
  constexpr int64_t kLeast = int64_t{128} << 20, kMost = int64_t{1} << 30;
  return std::clamp<int64_t>(4 * sysconf(_SC_LEVEL3_CACHE_SIZE), kLeast, kMost);
}

MachinePeak measure_peak(KernelContext& context) {
  return {peak_read(context), peak_flops(context)};
}

}  // namespace tamis
#endif  // HWY_ONCE
