// Where a token's cache entry lies. docs/formats/cache.md shows it byte by byte.
//
// The cache is cut into pages of 64 tokens. In each layer a page holds, one after the other,
//   latent part   64 rows: c_kv [kv_lora] then k_pe [rope]
//   index part    the indexer's keys of the same 64 tokens, if the layer has an indexer
// so that both are allocated, shared, saved and restored together.
//
// Rows of the latent part        bytes
//   F32, BF16                    (kv_lora + rope) * 4 or 2
//   FP8 (FlashMLA's V3.2 row)    kv_lora e4m3 | ceil(kv_lora/128) float scales | rope bf16: 656 for
//   512+64
// Index part
//   F32, BF16                    [64][index_dim]
//   FP8 (DeepGEMM's paged form)  [64][index_dim] e4m3, then [64] float scales: 8448 for 128
#pragma once

#include <cstddef>
#include <cstdint>

namespace tamis {

enum class KvFormat : uint8_t { kF32, kBF16, kFP8 };

constexpr int64_t kPageTokens = 64;

struct KvLayout {
  int64_t kv_lora = 0, rope = 0;
  int64_t index_dim = 0;  // 0: this layer keeps no indexer keys
  KvFormat latent_format = KvFormat::kF32;
  KvFormat index_format = KvFormat::kF32;

  int64_t latent_row_bytes() const;
  int64_t index_offset() const { return latent_row_bytes() * kPageTokens; }
  int64_t page_bytes() const;
};

// One layer of a paged cache: page p starts at base + p * page_stride.
struct KvLayer {
  KvLayout layout;
  std::byte* base = nullptr;
  int64_t page_stride = 0;
};

// A sequence: token at position s lies in page pages[s / 64], slot s % 64.
struct KvSequence {
  const int32_t* pages = nullptr;
};

// The tokens of one call: token t is position[t] of sequences[sequence[t]] and may read every
// position up to and including its own.
struct TokenMap {
  int64_t num_tokens = 0;
  const int32_t* sequence = nullptr;
  const int32_t* position = nullptr;
  const KvSequence* sequences = nullptr;
  // No position is this or more. For back ends that cannot read `position` on the host (cuda: sizes
  // of grids and scratch memory; rounded up it may serve many steps); others ignore it.
  int64_t max_context = 0;
};

inline std::byte* latent_row(const KvLayer& kv, const KvSequence& seq, int64_t position) {
  return kv.base + seq.pages[position / kPageTokens] * kv.page_stride +
         position % kPageTokens * kv.layout.latent_row_bytes();
}

inline std::byte* index_page(const KvLayer& kv, const KvSequence& seq, int64_t position) {
  return kv.base + seq.pages[position / kPageTokens] * kv.page_stride + kv.layout.index_offset();
}

// One token's c_kv [kv_lora] and k_pe [rope], one after the other, as float.
void read_latent(const KvLayer& kv, const KvSequence& seq, int64_t position, float* out);
// One token's indexer key [index_dim] as float (decoded and scaled).
void read_index_key(const KvLayer& kv, const KvSequence& seq, int64_t position, float* out);
// The inverse: rounds to the layout's formats (act_quant for FP8 keys, kv_quant for FP8 latents).
void write_latent(const KvLayer& kv, const KvSequence& seq, int64_t position, const float* c_kv,
                  const float* k_pe);
void write_index_key(const KvLayer& kv, const KvSequence& seq, int64_t position, const float* key,
                     bool ue8m0_scale);

}  // namespace tamis
