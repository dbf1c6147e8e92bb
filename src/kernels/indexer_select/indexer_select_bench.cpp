// us, GFLOP/s and bytes of keys a second of indexer_select on its named shapes.
#include <benchmark/benchmark.h>

#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/indexer_select/indexer_select.h"

namespace tamis {
namespace {

struct Shape {
  const char* name;
  int64_t tokens, heads, context;
};

constexpr Shape kShapes[] = {
    {"decode_8k", 1, 8, 8192},
    {"decode_32k", 1, 8, 32768},
    {"decode_32k_64heads", 1, 64, 32768},
    {"prefill_64_of_8k", 64, 8, 8192},
};

void bench(benchmark::State& state, const Shape& shape, KvFormat format, int threads) {
  constexpr int64_t kDim = 128, kSelected = 2048;
  KvLayer kv{{0, 0, kDim, KvFormat::kF32, format}, nullptr, 0};
  kv.page_stride = kv.layout.page_bytes();
  const int64_t pages = shape.context / kPageTokens;
  std::vector<std::byte> bytes(static_cast<size_t>(pages * kv.page_stride));
  kv.base = bytes.data();
  std::vector<int32_t> ids(static_cast<size_t>(pages));
  std::iota(ids.begin(), ids.end(), 0);
  const KvSequence sequence{ids.data()};
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto fill = [&](std::vector<float>& x) {
    for (float& v : x) v = normal(random);
  };
  std::vector<float> key(kDim);
  for (int64_t p = 0; p < shape.context; ++p) {
    fill(key);
    write_index_key(kv, sequence, p, key.data(), false);
  }
  const auto tokens = static_cast<size_t>(shape.tokens);
  std::vector<float> q(tokens * static_cast<size_t>(shape.heads * kDim));
  std::vector<float> w(tokens * static_cast<size_t>(shape.heads));
  fill(q);
  fill(w);
  std::vector<int32_t> zero(tokens, 0), position(tokens), indices(tokens * kSelected);
  std::iota(position.begin(), position.end(), static_cast<int32_t>(shape.context - shape.tokens));
  std::vector<uint8_t> nan(tokens);
  const IndexerArgs in{
      q.data(), w.data(), shape.heads, kv, {shape.tokens, zero.data(), position.data(), &sequence}};
  KernelContext context(threads);
  for (auto _ : state) indexer_select(context, {in, kSelected, indices.data(), nan.data()});

  const double keys = static_cast<double>(state.iterations() * shape.tokens * shape.context);
  using benchmark::Counter;
  state.counters["GFLOP/s"] =
      Counter(keys * static_cast<double>(shape.heads * kDim) * 2e-9, Counter::kIsRate);
  state.counters["GB/s"] =
      Counter(keys * static_cast<double>(kv.page_stride) / kPageTokens * 1e-9, Counter::kIsRate);
}

const bool kRegistered = [] {
  const std::pair<const char*, KvFormat> formats[] = {
      {"f32", KvFormat::kF32}, {"bf16", KvFormat::kBF16}, {"fp8", KvFormat::kFP8}};
  for (const Shape& shape : kShapes) {
    for (const auto& [format_name, format] : formats) {
      for (const int threads : {1, 2}) {
        const std::string name = std::string("indexer_select/") + shape.name + "/" + format_name +
                                 "/threads:" + std::to_string(threads);
        benchmark::RegisterBenchmark(name.c_str(), bench, shape, format, threads)
            ->UseRealTime()
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace tamis
