// us and GFLOP/s of mla_dense: a whole prompt at once, 16 heads of 128+64 and 128 dims.
#include <benchmark/benchmark.h>

#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/mla_dense/mla_dense.h"

namespace tamis {
namespace {

void bench(benchmark::State& state, int64_t tokens, int threads) {
  constexpr int64_t kHeads = 16, kNope = 128, kRope = 64, kValue = 128;
  const auto n = static_cast<size_t>(tokens);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> q(n * kHeads * (kNope + kRope)), kv(n * kHeads * (kNope + kValue));
  std::vector<float> k_pe(n * kRope), out(n * kHeads * kValue);
  for (std::vector<float>* x : {&q, &kv, &k_pe}) {
    for (float& v : *x) v = normal(random);
  }
  std::vector<int32_t> position(n);
  std::iota(position.begin(), position.end(), 0);
  KernelContext context(threads);
  MlaDenseArgs args;
  args.q = q.data();
  args.tokens = tokens;
  args.heads = kHeads;
  args.nope = kNope;
  args.rope = kRope;
  args.v_dim = kValue;
  args.position = position.data();
  args.kv = kv.data();
  args.k_pe = k_pe.data();
  args.softmax_scale = 0.07f;
  args.out = out.data();
  for (auto _ : state) mla_dense(context, args);
  const double pairs = static_cast<double>(tokens * (tokens + 1) / 2 * kHeads);
  state.counters["GFLOP/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * pairs * (kNope + kRope + kValue) * 2e-9,
      benchmark::Counter::kIsRate);
}

const bool kRegistered = [] {
  for (const int64_t tokens : {128, 512, 2048}) {
    for (const int threads : {1, 2}) {
      benchmark::RegisterBenchmark(
          ("mla_dense/tokens:" + std::to_string(tokens) + "/threads:" + std::to_string(threads))
              .c_str(),
          bench, tokens, threads)
          ->UseRealTime()
          ->Unit(benchmark::kMicrosecond);
    }
  }
  return true;
}();

}  // namespace
}  // namespace tamis
