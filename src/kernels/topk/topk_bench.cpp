// us a row of topk, by length and distribution.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kernels/topk/topk.h"

namespace tamis {
namespace {

using Make = float (*)(std::mt19937& random);

constexpr std::pair<const char*, Make> kDistributions[] = {
    {"normal", [](std::mt19937& r) { return std::normal_distribution<float>()(r); }},
    {"relu", [](std::mt19937& r) { return std::max(0.0f, std::normal_distribution<float>()(r)); }},
    {"narrow", [](std::mt19937& r) { return 1.0f + static_cast<float>(r() % 4096) * 0x1p-23f; }},
    {"equal", [](std::mt19937&) { return 1.0f; }},
    {"any_bits", [](std::mt19937& r) {
       return std::ldexp(static_cast<float>(r() % 1000) - 500, static_cast<int>(r() % 200) - 100);
     }}};

void bench(benchmark::State& state, int64_t length, Make make) {
  constexpr int64_t kSelected = 2048;
  std::mt19937 random(1);
  std::vector<float> scores(static_cast<size_t>(length)), work(scores.size());
  for (float& s : scores) s = make(random);
  std::vector<int32_t> indices(kSelected);
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        topk_row(scores.data(), length, kSelected, work.data(), indices.data()));
  }
  state.counters["GB/s"] = benchmark::Counter(
      static_cast<double>(state.iterations() * length) * 4e-9, benchmark::Counter::kIsRate);
}

const bool kRegistered = [] {
  for (const auto& [name, make] : kDistributions) {
    for (const int64_t length : {4096, 32768, 131072}) {
      benchmark::RegisterBenchmark(
          ("topk/" + std::string(name) + "/length:" + std::to_string(length)).c_str(), bench,
          length, make)
          ->Unit(benchmark::kMicrosecond);
    }
  }
  return true;
}();

}  // namespace
}  // namespace tamis
