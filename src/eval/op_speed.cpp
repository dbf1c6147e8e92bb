#include "eval/op_speed.h"

#include <algorithm>
#include <chrono>
#include <vector>

namespace tamis {
namespace {

using Clock = std::chrono::steady_clock;

// Memory that pushes everything else out of the caches, read on every thread.
class CacheFlush {
 public:
  explicit CacheFlush(int64_t bytes)
      : memory_(static_cast<size_t>(bytes / 8), 1), sums_(memory_.size() / kBlock) {}

  void run(KernelContext& context) {
    context.pool().run(static_cast<int64_t>(sums_.size()), [&](int64_t b, int) {
      const auto begin = static_cast<size_t>(b) * kBlock;
      for (size_t i = begin; i < begin + kBlock; i += kLine) {
        sums_[static_cast<size_t>(b)] += memory_[i];  // kept, or the reads would be dropped
      }
    });
  }

 private:
  static constexpr size_t kLine = 8, kBlock = 1 << 16;  // words
  std::vector<uint64_t> memory_, sums_;
};

double median(std::vector<double> v) {
  const auto middle = v.begin() + static_cast<int64_t>(v.size() / 2);
  std::nth_element(v.begin(), middle, v.end());
  return *middle;
}

// "simd" of mla_sparse.
std::string implementation_of(const KernelContext& context, const std::string& op) {
  for (const Choice& c : context.ran()) {
    if (c.op == op) return c.implementation;
  }
  return "";
}

}  // namespace

OpSpeed measure_op(KernelContext& context, const Workload& workload, const MachinePeak& peak,
                   const OpSpeedOptions& options) {
  const auto call = workload.prepare();
  CacheFlush flush(options.warm ? 0 : cache_flush_bytes() / 2);
  call(context);  // scratch memory grows, pages are touched
  std::vector<double> times;
  double total = 0;
  while (static_cast<int64_t>(times.size()) < options.repeat || total < options.seconds) {
    flush.run(context);
    const auto start = Clock::now();
    call(context);
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    // Flushing takes longer than a short operation: count it, or 5 us would cost seconds.
    total += std::max(times.back(), options.warm ? 0.0 : options.seconds / 16);
  }
  const double time = median(times);
  OpSpeed s;
  s.microseconds = time * 1e6;
  s.gigabytes_per_second = workload.bytes / time * 1e-9;
  s.gigaflops = workload.flops / time * 1e-9;
  const double memory_time = workload.bytes / peak.read_bytes_per_second;
  const double arithmetic_time = workload.flops / peak.flops;
  s.memory_bound = memory_time >= arithmetic_time;
  s.share = std::max(memory_time, arithmetic_time) / time;
  s.implementation = implementation_of(context, workload.op);
  return s;
}

}  // namespace tamis
