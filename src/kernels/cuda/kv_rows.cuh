// kernels/kv_layout.h for device code: where a token's cache entry lies, and its values as float.
#pragma once

#include <cstdint>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/fp8.cuh"
#include "kernels/kv_layout.h"

namespace tamis {

// A layer's cache with the sizes that KvLayout computes, worked out once on the host.
struct KvRows {
  const std::byte* base = nullptr;
  int64_t page_stride = 0, row_bytes = 0, index_offset = 0;
  int kv_lora = 0, rope = 0, index_dim = 0;
  KvFormat latent_format = KvFormat::kF32, index_format = KvFormat::kF32;
  // Four neighbours from a multiple of 4 on lie in one aligned piece of memory: latent_values() and
  // index_values() may be used.
  bool latent_by_fours = false, index_by_fours = false;
};

inline KvRows kv_rows(const KvLayer& kv) {
  const KvLayout& l = kv.layout;
  const int64_t rope_offset = l.kv_lora + (l.kv_lora + 127) / 128 * 4;  // in an FP8 row
  const bool pages = kv.page_stride % 16 == 0 && reinterpret_cast<uintptr_t>(kv.base) % 16 == 0;
  const bool latent = l.kv_lora % 4 == 0 && l.rope % 4 == 0 && l.latent_row_bytes() % 8 == 0 &&
                      (l.latent_format != KvFormat::kF32 || l.latent_row_bytes() % 16 == 0) &&
                      (l.latent_format != KvFormat::kFP8 || rope_offset % 8 == 0);
  return {kv.base,
          kv.page_stride,
          l.latent_row_bytes(),
          l.index_offset(),
          static_cast<int>(l.kv_lora),
          static_cast<int>(l.rope),
          static_cast<int>(l.index_dim),
          l.latent_format,
          l.index_format,
          pages && latent,
          pages && l.index_dim % 4 == 0 && l.index_offset() % 16 == 0};
}

__device__ inline const std::byte* page_of(const KvRows& kv, const KvSequence& seq, int position) {
  return kv.base + seq.pages[position / kPageTokens] * kv.page_stride;
}

__device__ inline const std::byte* latent_row(const KvRows& kv, const KvSequence& seq,
                                              int position) {
  return page_of(kv, seq, position) + position % kPageTokens * kv.row_bytes;
}

// Value d of a latent row (c_kv, then k_pe), as read_latent gives it.
__device__ inline float latent_value(const KvRows& kv, const std::byte* row, int d) {
  switch (kv.latent_format) {
    case KvFormat::kF32:
      return reinterpret_cast<const float*>(row)[d];
    case KvFormat::kBF16:
      return bf16_bits_to_float(reinterpret_cast<const uint16_t*>(row)[d]);
    case KvFormat::kFP8:
      break;
  }
  const std::byte* after = row + kv.kv_lora;
  const int scales = (kv.kv_lora + 127) / 128;
  if (d < kv.kv_lora) {
    float scale;  // kv_lora need not be a multiple of 4, so neither need the address
    memcpy(&scale, after + d / 128 * 4, 4);
    return e4m3_bits_to_float(reinterpret_cast<const uint8_t*>(row)[d]) * scale;
  }
  uint16_t bits;
  memcpy(&bits, after + scales * 4 + (d - kv.kv_lora) * 2, 2);
  return bf16_bits_to_float(bits);
}

__device__ inline float4 four_bf16(const std::byte* p) {
  const uint2 bits = *reinterpret_cast<const uint2*>(p);
  return make_float4(__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xFFFF0000u),
                     __uint_as_float(bits.y << 16), __uint_as_float(bits.y & 0xFFFF0000u));
}

__device__ inline float4 four_e4m3(const std::byte* p, float scale) {
  const uint32_t codes = *reinterpret_cast<const uint32_t*>(p);
  return make_float4(
      e4m3_bits_to_float(codes & 0xFF) * scale, e4m3_bits_to_float(codes >> 8 & 0xFF) * scale,
      e4m3_bits_to_float(codes >> 16 & 0xFF) * scale, e4m3_bits_to_float(codes >> 24) * scale);
}

// Values d .. d + 3 of a latent row, d a multiple of 4; only with latent_by_fours.
__device__ inline float4 latent_values(const KvRows& kv, const std::byte* row, int d) {
  if (kv.latent_format == KvFormat::kF32) return *reinterpret_cast<const float4*>(row + d * 4);
  if (kv.latent_format == KvFormat::kBF16) return four_bf16(row + d * 2);
  const std::byte* after = row + kv.kv_lora;
  if (d >= kv.kv_lora) {
    return four_bf16(after + (kv.kv_lora + 127) / 128 * 4 + (d - kv.kv_lora) * 2);
  }
  return four_e4m3(row + d, *reinterpret_cast<const float*>(after + d / 128 * 4));
}

// The same of an indexer key; only with index_by_fours.
__device__ inline float4 index_values(const KvRows& kv, const std::byte* page, int slot, int d) {
  const std::byte* part = page + kv.index_offset;
  const int at = slot * kv.index_dim + d;
  if (kv.index_format == KvFormat::kF32) return *reinterpret_cast<const float4*>(part + at * 4);
  if (kv.index_format == KvFormat::kBF16) return four_bf16(part + at * 2);
  return four_e4m3(part + at,
                   reinterpret_cast<const float*>(part + kPageTokens * kv.index_dim)[slot]);
}

// Value d of the indexer key in `slot` of a page, as read_index_key gives it.
__device__ inline float index_value(const KvRows& kv, const std::byte* page, int slot, int d) {
  const std::byte* part = page + kv.index_offset;
  switch (kv.index_format) {
    case KvFormat::kF32:
      return reinterpret_cast<const float*>(part)[slot * kv.index_dim + d];
    case KvFormat::kBF16:
      return bf16_bits_to_float(reinterpret_cast<const uint16_t*>(part)[slot * kv.index_dim + d]);
    case KvFormat::kFP8:
      break;
  }
  const float scale = reinterpret_cast<const float*>(part + kPageTokens * kv.index_dim)[slot];
  return e4m3_bits_to_float(reinterpret_cast<const uint8_t*>(part)[slot * kv.index_dim + d]) *
         scale;
}

}  // namespace tamis
