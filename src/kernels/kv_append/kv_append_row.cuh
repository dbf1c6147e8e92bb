// One token of kv_append, for its kernel and that of token_ops: byte for byte what write_latent and
// write_index_key store. A warp takes blocks of 128 values, four a lane: the greatest magnitude by
// shuffles, the scale, then the codes.
#pragma once

#include "kernels/cuda/kv_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/kv_append/kv_append.h"

namespace tamis {
namespace kv_append_row {

constexpr int kBlock = 128, kEach = kBlock / 32;
constexpr float kMax = 448.0f, kTiny = 1e-4f;

template <typename T>
__device__ inline void put(std::byte* p, int64_t i, T value) {
  memcpy(p + i * sizeof(T), &value, sizeof(T));
}

__device__ inline float act_scale(float amax, bool ue8m0) {
  const float scale = fmaxf(amax, kTiny) * (1.0f / kMax);
  return ue8m0 ? ceil_power_of_two(scale) : scale;
}

__device__ inline float kv_scale(float amax) {
  return ceil_power_of_two(fmaxf(amax / kMax, kTiny));
}

// Codes of x [count <= 128] to `q`, by one warp. Returns the scale. NaN does not count in amax.
template <typename Scale>
__device__ inline float quantise(const float* x, int count, std::byte* q, const Scale& scale_of) {
  const int lane = threadIdx.x % 32;
  float value[kEach], amax = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int i = lane + 32 * j;
    value[j] = i < count ? x[i] : 0;
    amax = fmaxf(amax, fabsf(value[j]));
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    amax = fmaxf(amax, __shfl_xor_sync(0xFFFFFFFFu, amax, offset));
  }
  const float scale = scale_of(amax);
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int i = lane + 32 * j;
    if (i < count) put(q, i, float_to_e4m3_bits(value[j] / scale));
  }
  return scale;
}

// x [count] in a format of 4 or 2 bytes, by the whole block.
__device__ inline void write_plain(KvFormat format, const float* x, int count, std::byte* out) {
  for (int i = threadIdx.x; i < count; i += kRowThreads) {
    if (format == KvFormat::kF32) {
      put(out, i, x[i]);
    } else {
      put(out, i, float_to_bf16_bits(x[i]));
    }
  }
}

__device__ inline void write_latent_row(const KvRows& kv, const float* c_kv, const float* k_pe,
                                        std::byte* row) {
  if (kv.latent_format != KvFormat::kFP8) {
    const int bytes = kv.latent_format == KvFormat::kF32 ? 4 : 2;
    write_plain(kv.latent_format, c_kv, kv.kv_lora, row);
    write_plain(kv.latent_format, k_pe, kv.rope, row + kv.kv_lora * bytes);
    return;
  }
  const int blocks = (kv.kv_lora + kBlock - 1) / kBlock;
  for (int b = threadIdx.x / 32; b < blocks; b += kRowThreads / 32) {
    const int begin = b * kBlock;
    const float scale = quantise(c_kv + begin, min(kBlock, kv.kv_lora - begin), row + begin,
                                 [](float amax) { return kv_scale(amax); });
    if (threadIdx.x % 32 == 0) put(row + kv.kv_lora, b, scale);
  }
  write_plain(KvFormat::kBF16, k_pe, kv.rope, row + kv.kv_lora + blocks * 4);
}

__device__ inline void write_index_row(const KvRows& kv, const float* key, bool ue8m0,
                                       std::byte* page, int slot) {
  std::byte* part = page + kv.index_offset;
  if (kv.index_format != KvFormat::kFP8) {
    const int bytes = kv.index_format == KvFormat::kF32 ? 4 : 2;
    return write_plain(kv.index_format, key, kv.index_dim, part + slot * kv.index_dim * bytes);
  }
  if (threadIdx.x >= 32) return;
  const float scale = quantise(key, kv.index_dim, part + slot * kv.index_dim,
                               [&](float amax) { return act_scale(amax, ue8m0); });
  if (threadIdx.x == 0) put(part + kPageTokens * kv.index_dim, slot, scale);
}

}  // namespace kv_append_row

// By a block of kRowThreads.
__device__ inline void append_token(const KvAppendArgs& a, const KvRows& kv, int64_t t) {
  using namespace kv_append_row;
  const KvSequence seq = a.tokens.sequences[a.tokens.sequence[t]];
  const int position = a.tokens.position[t];
  std::byte* page = a.kv.base + seq.pages[position / kPageTokens] * kv.page_stride;
  const int slot = static_cast<int>(position % kPageTokens);
  if (a.c_kv != nullptr) {
    write_latent_row(kv, a.c_kv + t * kv.kv_lora, a.k_pe + t * a.k_pe_stride,
                     page + slot * kv.row_bytes);
  }
  if (a.index_key != nullptr) {
    write_index_row(kv, a.index_key + t * kv.index_dim, a.ue8m0_scale, page, slot);
  }
}

}  // namespace tamis
