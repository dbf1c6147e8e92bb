// kernels_bench: every workload under Google Benchmark, with one and two threads.
//   kernels_bench --benchmark_filter='mla_sparse/small_.*'
// Operands are warm where they fit into the cache; `tamis bench op` times them cold and knows the
// machine's limits.
#include <benchmark/benchmark.h>

#include "kernels/workloads/workloads.h"

namespace tamis {
namespace {

void run(benchmark::State& state, const Workload& workload, int threads) {
  KernelContext context(threads);
  const auto call = workload.prepare();
  for (auto _ : state) call(context);
  const auto runs = static_cast<double>(state.iterations());
  using benchmark::Counter;
  state.counters["GB/s"] = Counter(workload.bytes * runs * 1e-9, Counter::kIsRate);
  state.counters["GFLOP/s"] = Counter(workload.flops * runs * 1e-9, Counter::kIsRate);
}

const bool kRegistered = [] {
  for (const Workload& w : all_workloads()) {
    for (const int threads : {1, 2}) {
      const std::string name = w.op + "/" + w.shape + "/threads:" + std::to_string(threads);
      benchmark::RegisterBenchmark(
          name.c_str(), [w, threads](benchmark::State& state) { run(state, w, threads); })
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
  return true;
}();

}  // namespace
}  // namespace tamis
