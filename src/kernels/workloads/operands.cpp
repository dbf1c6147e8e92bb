#include "kernels/workloads/operands.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace tamis {
namespace {

uint64_t next(uint64_t& state) {  // Knuth's constants; the high bits are good
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  return state >> 33;
}

void fill_scales(OwnedWeight& owned) {
  Weight& w = owned.w;
  const bool fp8 = w.dtype == DType::kF8E4M3;
  if (!fp8 && w.dtype != DType::kI8 && w.dtype != DType::kI4) return;
  const int64_t columns = fp8 ? kFp8Block : kIntGroup, rows = fp8 ? kFp8Block : 1;
  w.scale_dtype = fp8 ? DType::kF32 : DType::kBF16;
  w.scale_stride = (w.cols + columns - 1) / columns;
  const float scale = 0x1p-7F;
  uint32_t bits;
  std::memcpy(&bits, &scale, sizeof bits);
  const auto half = static_cast<uint16_t>(bits >> 16);
  const int64_t count = (w.rows + rows - 1) / rows * w.scale_stride, size = fp8 ? 4 : 2;
  owned.scales.resize(static_cast<size_t>(count * size));
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(owned.scales.data() + i * size,
                fp8 ? static_cast<const void*>(&bits) : static_cast<const void*>(&half),
                static_cast<size_t>(size));
  }
  w.scales = owned.scales.data();
}

// Keeps a 64-bit word of random bits to numbers between 2^-3 and 2^4.
uint64_t ordinary(DType dtype, uint64_t bits) {
  switch (dtype) {
    case DType::kF32:
      return (bits & 0x807FFFFF807FFFFFULL) | 0x3F8000003F800000ULL;
    case DType::kBF16:
      return (bits & 0x807F807F807F807FULL) | 0x3F803F803F803F80ULL;
    case DType::kF16:
      return (bits & 0x83FF83FF83FF83FFULL) | 0x3C003C003C003C00ULL;
    case DType::kF8E4M3:
      return (bits & 0x9F9F9F9F9F9F9F9FULL) | 0x2020202020202020ULL;
    default:
      return bits;
  }
}

}  // namespace

std::vector<float> noise(int64_t n, uint64_t seed) {
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = (static_cast<float>(next(seed) >> 7) * 0x1p-23F - 1.0F) * 1.732F;
  return x;
}

OwnedWeight random_weight(DType dtype, int64_t rows, int64_t cols) {
  OwnedWeight owned;
  Weight& w = owned.w;
  w.dtype = dtype;
  w.rows = rows;
  w.cols = cols;
  w.row_bytes = dtype_bytes(dtype, cols);
  owned.data.resize(static_cast<size_t>((rows * w.row_bytes + 7) / 8 * 8));
  uint64_t seed = 1;
  for (size_t i = 0; i < owned.data.size(); i += 8) {
    const uint64_t bits = ordinary(dtype, next(seed) << 32 ^ next(seed) << 1);
    std::memcpy(&owned.data[i], &bits, sizeof bits);
  }
  w.data = owned.data.data();
  fill_scales(owned);
  return owned;
}

double weight_bytes(DType dtype, int64_t rows, int64_t cols) {
  Weight w;
  w.dtype = dtype;
  w.rows = rows;
  w.cols = cols;
  w.row_bytes = dtype_bytes(dtype, cols);
  w.scale_dtype = dtype == DType::kF8E4M3 ? DType::kF32 : DType::kBF16;
  return static_cast<double>(w.bytes());
}

OwnedCache::OwnedCache(const KvLayout& layout, int64_t context, int64_t tokens) {
  kv.layout = layout;
  kv.page_stride = layout.page_bytes();
  const int64_t count = (context + kPageTokens - 1) / kPageTokens;
  bytes.resize(static_cast<size_t>(count * kv.page_stride));
  kv.base = bytes.data();
  pages.resize(static_cast<size_t>(count));
  std::iota(pages.begin(), pages.end(), 0);
  uint64_t seed = 1;
  for (size_t i = pages.size(); i > 1; --i) std::swap(pages[i - 1], pages[next(seed) % i]);
  sequence.pages = pages.data();
  const int64_t width = layout.kv_lora + layout.rope;
  const std::vector<float> row = noise(std::max(width, layout.index_dim) + 64, 2);
  for (int64_t p = 0; p < context; ++p) {  // rows overlap: they only have to differ
    const float* values = row.data() + p % 64;
    if (width > 0) write_latent(kv, sequence, p, values, values + layout.kv_lora);
    if (layout.index_dim > 0) write_index_key(kv, sequence, p, values, false);
  }
  sequence_of.assign(static_cast<size_t>(tokens), 0);
  position.resize(static_cast<size_t>(tokens));
  std::iota(position.begin(), position.end(), static_cast<int32_t>(context - tokens));
}

TokenMap OwnedCache::map() const {
  return {static_cast<int64_t>(position.size()), sequence_of.data(), position.data(), &sequence};
}

std::vector<Workload> all_workloads() {
  std::vector<Workload> list;
  add_attention_workloads(list);
  add_linear_workloads(list);
  add_moe_workloads(list);
  add_row_workloads(list);
  std::stable_sort(list.begin(), list.end(),
                   [](const Workload& a, const Workload& b) { return a.op < b.op; });
  return list;
}

}  // namespace tamis
