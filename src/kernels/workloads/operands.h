// Random operands of workloads, and the parts the list is put together from.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/kv_layout.h"
#include "kernels/weight.h"
#include "kernels/workloads/workloads.h"

namespace tamis {

// n numbers in [-1.7, 1.7): variance 1. The same for the same seed.
std::vector<float> noise(int64_t n, uint64_t seed);

struct OwnedWeight {
  std::vector<std::byte> data, scales;
  Weight w;
};
// Values of ordinary size in any weight format; no subnormals.
OwnedWeight random_weight(DType dtype, int64_t rows, int64_t cols);
// Bytes of weights and scales, without making them.
double weight_bytes(DType dtype, int64_t rows, int64_t cols);

// A filled cache of one sequence on shuffled pages, and the token map of its last `tokens`.
struct OwnedCache {
  OwnedCache(const KvLayout& layout, int64_t context, int64_t tokens);
  OwnedCache(const OwnedCache&) = delete;
  TokenMap map() const;

  KvLayer kv;
  std::vector<std::byte> bytes;
  std::vector<int32_t> pages, sequence_of, position;
  KvSequence sequence;
};

struct NamedFormat {
  const char* name;
  KvFormat format;
};
constexpr NamedFormat kCacheFormats[] = {
    {"f32", KvFormat::kF32}, {"bf16", KvFormat::kBF16}, {"fp8", KvFormat::kFP8}};

void add_attention_workloads(std::vector<Workload>& list);
void add_linear_workloads(std::vector<Workload>& list);
void add_moe_workloads(std::vector<Workload>& list);
void add_row_workloads(std::vector<Workload>& list);

}  // namespace tamis
