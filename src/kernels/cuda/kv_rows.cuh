// kernels/kv_layout.h for device code: where a token's cache entry lies, and its values as float.
#pragma once

#include <cstdint>

#include "kernels/cuda/convert.cuh"
#include "kernels/kv_layout.h"

namespace tamis {

// A layer's cache with the sizes that KvLayout computes, worked out once on the host.
struct KvRows {
  const std::byte* base = nullptr;
  int64_t page_stride = 0, row_bytes = 0, index_offset = 0;
  int kv_lora = 0, rope = 0, index_dim = 0;
  KvFormat latent_format = KvFormat::kF32, index_format = KvFormat::kF32;
};

inline KvRows kv_rows(const KvLayer& kv) {
  const KvLayout& l = kv.layout;
  return {kv.base,
          kv.page_stride,
          l.latent_row_bytes(),
          l.index_offset(),
          static_cast<int>(l.kv_lora),
          static_cast<int>(l.rope),
          static_cast<int>(l.index_dim),
          l.latent_format,
          l.index_format};
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
