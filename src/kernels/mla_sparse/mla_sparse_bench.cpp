// us, GFLOP/s and bytes of cache a second of mla_sparse on its named shapes. Rows are gathered from
// a cache larger than the last-level cache.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/mla_sparse/mla_sparse.h"

namespace tamis {
namespace {

struct Shape {
  const char* name;
  int64_t tokens, heads, context, k;  // k 0: all visible
};

constexpr Shape kShapes[] = {
    {"decode_2k_of_32k", 1, 16, 32768, 2048},     {"decode_dense_2k", 1, 16, 2048, 0},
    {"decode_dense_32k", 1, 16, 32768, 0},        {"decode_batch8", 8, 16, 32768, 2048},
    {"prefill_64_of_8k", 64, 16, 8192, 2048},     {"prefill_dense_512", 512, 16, 512, 0},
    {"prefill_2k_128heads", 8, 128, 32768, 2048},
};

struct Problem {
  Problem(const Shape& s, KvFormat format) : shape(s) {
    kv.layout = {512, 64, 0, format, format};
    kv.page_stride = kv.layout.page_bytes();
    const int64_t pages = (s.context + kPageTokens - 1) / kPageTokens;
    bytes.resize(static_cast<size_t>(pages * kv.page_stride));
    kv.base = bytes.data();
    page_ids.resize(static_cast<size_t>(pages));
    std::iota(page_ids.begin(), page_ids.end(), 0);
    std::mt19937 random(1);
    std::shuffle(page_ids.begin(), page_ids.end(), random);
    sequence.pages = page_ids.data();
    std::normal_distribution<float> normal;
    std::vector<float> row(576);
    for (int64_t p = 0; p < s.context; ++p) {
      row[static_cast<size_t>(p % 576)] = normal(random);
      write_latent(kv, sequence, p, row.data(), row.data() + 512);
    }
    q.resize(static_cast<size_t>(s.tokens * s.heads * 576), 0.1f);
    out.resize(static_cast<size_t>(s.tokens * s.heads * 512));
    ids.assign(static_cast<size_t>(s.tokens), 0);
    std::vector<int32_t> all(static_cast<size_t>(s.context));
    std::iota(all.begin(), all.end(), 0);
    for (int64_t t = 0; t < s.tokens; ++t) {
      position.push_back(static_cast<int32_t>(s.context - s.tokens + t));
      std::sample(all.begin(), all.begin() + position.back() + 1, std::back_inserter(indices), s.k,
                  random);
    }
  }

  MlaSparseArgs args() {
    MlaSparseArgs a;
    a.q_latent = q.data();
    a.q_pe = q.data() + shape.tokens * shape.heads * 512;
    a.q_pe_token_stride = shape.heads * 64;
    a.q_pe_head_stride = 64;
    a.heads = shape.heads;
    a.kv = kv;
    a.tokens = {shape.tokens, ids.data(), position.data(), &sequence};
    a.indices = shape.k > 0 ? indices.data() : nullptr;
    a.k = shape.k;
    a.softmax_scale = 0.135f;
    a.out = out.data();
    return a;
  }

  double rows() const {
    double n = 0;
    for (const int32_t p : position) {
      n += static_cast<double>(shape.k > 0 ? std::min<int64_t>(shape.k, p + 1) : p + 1);
    }
    return n;
  }

  Shape shape;
  KvLayer kv;
  std::vector<std::byte> bytes;
  std::vector<int32_t> page_ids, ids, position, indices;
  KvSequence sequence;
  std::vector<float> q, out;
};

void bench(benchmark::State& state, const Shape& shape, KvFormat format, int threads) {
  Problem problem(shape, format);
  const MlaSparseArgs args = problem.args();
  KernelContext context(threads);
  for (auto _ : state) mla_sparse(context, args);
  const double rows = problem.rows() * static_cast<double>(state.iterations());
  using benchmark::Counter;
  state.counters["GFLOP/s"] =
      Counter(rows * static_cast<double>(shape.heads) * 2e-9 * (576 + 512), Counter::kIsRate);
  state.counters["GB/s"] = Counter(
      rows * 1e-9 * static_cast<double>(problem.kv.layout.latent_row_bytes()), Counter::kIsRate);
}

const bool kRegistered = [] {
  const std::pair<const char*, KvFormat> formats[] = {
      {"f32", KvFormat::kF32}, {"bf16", KvFormat::kBF16}, {"fp8", KvFormat::kFP8}};
  for (const Shape& shape : kShapes) {
    for (const auto& format : formats) {
      for (const int threads : {1, 2}) {
        const std::string name = std::string("mla_sparse/") + shape.name + "/" + format.first +
                                 "/threads:" + std::to_string(threads);
        benchmark::RegisterBenchmark(name.c_str(), bench, shape, format.second, threads)
            ->UseRealTime()
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace tamis
