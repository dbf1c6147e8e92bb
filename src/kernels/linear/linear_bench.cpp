// Speed of linear: rows of x from decode (1) to prefill (512), every format. GB/s counts the
// weights and scales once; machine_read is what this machine reads, to compare with in one run.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <string>

#include "bench/workloads.h"
#include "kernels/linear/linear.h"
#include "kernels/test_weight.h"

namespace tamis {
namespace {

constexpr int kThreads = 2;

// Copies of the weight, used in turn, so that it comes from memory as in a model; 256 MiB in all.
constexpr int64_t kCold = int64_t{256} << 20;

void run_linear(benchmark::State& state, const bench::LinearShape& shape, DType dtype, int64_t m) {
  KernelContext context(kThreads);
  const TestWeight t = test_weight(dtype, shape.rows, shape.cols, 1);
  const int64_t bytes = t.w.rows * t.w.row_bytes;
  const int64_t copies = std::max<int64_t>(1, kCold / bytes);
  std::vector<std::byte> data(static_cast<size_t>(copies * bytes));
  for (int64_t i = 0; i < copies; ++i) std::copy_n(t.data.data(), bytes, &data[i * bytes]);
  const std::vector<float> x = random_floats(m * shape.cols, 2);
  std::vector<float> y(static_cast<size_t>(m * shape.rows));
  LinearArgs a;
  a.x = x.data();
  a.x_stride = shape.cols;
  a.m = m;
  a.w = t.w;
  a.y = y.data();
  a.y_stride = shape.rows;
  int64_t turn = 0;
  for (auto _ : state) {
    a.w.data = &data[turn++ % copies * bytes];
    linear(context, a);
  }
  const auto runs = static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(static_cast<double>(t.w.bytes()) * runs / 1e9,
                                              benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] =
      benchmark::Counter(2.0 * static_cast<double>(m * shape.rows * shape.cols) * runs / 1e9,
                         benchmark::Counter::kIsRate);
}

void machine_read(benchmark::State& state) {
  KernelContext context(kThreads);
  const std::vector<uint64_t> words(static_cast<size_t>(kCold / 8), 1);
  constexpr int64_t kBlocks = 1024, kWords = kCold / 8 / kBlocks;
  for (auto _ : state) {
    context.pool().run(kBlocks, [&](int64_t block, int) {
      const uint64_t* p = &words[block * kWords];
      uint64_t sum[4] = {};
      for (int64_t i = 0; i < kWords; i += 8) {
        __builtin_prefetch(p + i + 2048);
        for (int64_t k = 0; k < 8; ++k) sum[k % 4] += p[i + k];
      }
      benchmark::DoNotOptimize(sum);
    });
  }
  state.counters["GB/s"] =
      benchmark::Counter(static_cast<double>(kCold) * static_cast<double>(state.iterations()) / 1e9,
                         benchmark::Counter::kIsRate);
}

const int kRegistered = [] {
  benchmark::RegisterBenchmark("machine_read", machine_read)->UseRealTime();
  for (const bench::LinearShape& shape : bench::kLinearShapes) {
    for (const DType dtype : kWeightFormats) {
      for (const int64_t m : {1, 4, 8, 16, 64, 512}) {
        const std::string name = std::string("linear/") + shape.name + "/" +
                                 std::string(dtype_name(dtype)) + "/m" + std::to_string(m);
        benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
          run_linear(state, shape, dtype, m);
        })->UseRealTime();
      }
    }
  }
  return 0;
}();

}  // namespace
}  // namespace tamis
