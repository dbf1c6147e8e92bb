#include "kernels/kv_layout.h"

#include <cstring>

#include "kernels/quantize_fp8/quantize_fp8.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

constexpr int64_t kBlock = 128;

int64_t blocks(int64_t n) { return (n + kBlock - 1) / kBlock; }
int64_t element_bytes(KvFormat f) { return f == KvFormat::kF32 ? 4 : f == KvFormat::kBF16 ? 2 : 1; }

template <typename T>
T load(const std::byte* p, int64_t i) {
  T value;
  std::memcpy(&value, p + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

template <typename T>
void store(std::byte* p, int64_t i, T value) {
  std::memcpy(p + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

void read_values(KvFormat format, const std::byte* p, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = format == KvFormat::kF32 ? load<float>(p, i) : bf16_to_float(load<uint16_t>(p, i));
  }
}

void write_values(KvFormat format, const float* x, int64_t n, std::byte* p) {
  for (int64_t i = 0; i < n; ++i) {
    format == KvFormat::kF32 ? store(p, i, x[i]) : store(p, i, float_to_bf16(x[i]));
  }
}

}  // namespace

int64_t KvLayout::latent_row_bytes() const {
  if (latent_format == KvFormat::kFP8) return kv_lora + blocks(kv_lora) * 4 + rope * 2;
  return (kv_lora + rope) * element_bytes(latent_format);
}

int64_t KvLayout::page_bytes() const {
  const int64_t scale = index_format == KvFormat::kFP8 ? 4 : 0;
  const int64_t index = index_dim == 0 ? 0 : index_dim * element_bytes(index_format) + scale;
  return (latent_row_bytes() + index) * kPageTokens;
}

void read_latent(const KvLayer& kv, const KvSequence& seq, int64_t position, float* out) {
  const KvLayout& l = kv.layout;
  const std::byte* row = latent_row(kv, seq, position);
  if (l.latent_format != KvFormat::kFP8) {
    return read_values(l.latent_format, row, l.kv_lora + l.rope, out);
  }
  const std::byte* scales = row + l.kv_lora;
  for (int64_t i = 0; i < l.kv_lora; ++i) {
    out[i] = e4m3_to_float(load<uint8_t>(row, i)) * load<float>(scales, i / kBlock);
  }
  read_values(KvFormat::kBF16, scales + blocks(l.kv_lora) * 4, l.rope, out + l.kv_lora);
}

void write_latent(const KvLayer& kv, const KvSequence& seq, int64_t position, const float* c_kv,
                  const float* k_pe) {
  const KvLayout& l = kv.layout;
  std::byte* row = latent_row(kv, seq, position);
  if (l.latent_format != KvFormat::kFP8) {
    write_values(l.latent_format, c_kv, l.kv_lora, row);
    write_values(l.latent_format, k_pe, l.rope, row + l.kv_lora * element_bytes(l.latent_format));
    return;
  }
  float scales[64];  // kv_lora up to 8192
  kv_quant_row(c_kv, l.kv_lora, reinterpret_cast<uint8_t*>(row), scales);
  std::memcpy(row + l.kv_lora, scales, static_cast<size_t>(blocks(l.kv_lora)) * 4);
  write_values(KvFormat::kBF16, k_pe, l.rope, row + l.kv_lora + blocks(l.kv_lora) * 4);
}

void read_index_key(const KvLayer& kv, const KvSequence& seq, int64_t position, float* out) {
  const KvLayout& l = kv.layout;
  const std::byte* page = index_page(kv, seq, position);
  const int64_t slot = position % kPageTokens;
  const std::byte* key = page + slot * l.index_dim * element_bytes(l.index_format);
  if (l.index_format != KvFormat::kFP8) return read_values(l.index_format, key, l.index_dim, out);
  const float scale = load<float>(page + kPageTokens * l.index_dim, slot);
  for (int64_t i = 0; i < l.index_dim; ++i) out[i] = e4m3_to_float(load<uint8_t>(key, i)) * scale;
}

void write_index_key(const KvLayer& kv, const KvSequence& seq, int64_t position, const float* key,
                     bool ue8m0_scale) {
  const KvLayout& l = kv.layout;
  std::byte* page = index_page(kv, seq, position);
  const int64_t slot = position % kPageTokens;
  std::byte* out = page + slot * l.index_dim * element_bytes(l.index_format);
  if (l.index_format != KvFormat::kFP8) return write_values(l.index_format, key, l.index_dim, out);
  float scale = 0;
  act_quant_row(key, l.index_dim, ue8m0_scale, reinterpret_cast<uint8_t*>(out), &scale);
  store(page + kPageTokens * l.index_dim, slot, scale);
}

}  // namespace tamis
