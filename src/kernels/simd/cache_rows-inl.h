// Rows of the paged cache as float, for one instruction set: the same bits as read_latent and
// read_index_key of kv_layout.h.
#if defined(TAMIS_KERNELS_SIMD_CACHE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TAMIS_KERNELS_SIMD_CACHE_ROWS_INL_H_
#undef TAMIS_KERNELS_SIMD_CACHE_ROWS_INL_H_
#else
#define TAMIS_KERNELS_SIMD_CACHE_ROWS_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/kv_layout.h"
#include "kernels/simd/tiles-inl.h"
#include "tensor/convert.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {

HWY_INLINE void bf16_row(const std::byte* HWY_RESTRICT in, int64_t n, float* HWY_RESTRICT out) {
  const LaneTag d;
  const hn::RebindToUnsigned<LaneTag> du;
  const hn::Rebind<uint16_t, LaneTag> du16;
  int64_t i = 0;
  for (; i + kVec <= n; i += kVec) {
    const auto bits = hn::LoadU(du16, reinterpret_cast<const uint16_t*>(in) + i);
    hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits))), d, out + i);
  }
  for (; i < n; ++i) {
    uint16_t bits;
    std::memcpy(&bits, in + 2 * i, sizeof(bits));
    out[i] = bf16_to_float(bits);
  }
}

// out = e4m3 * scale. The seven value bits, moved up into a float's exponent and mantissa, are the
// value times 2^-120, subnormals included; 0x7F is NaN.
HWY_INLINE void e4m3_row(const std::byte* HWY_RESTRICT in, int64_t n, float scale,
                         float* HWY_RESTRICT out) {
  const LaneTag d;
  const hn::RebindToUnsigned<LaneTag> du;
  const hn::Rebind<uint8_t, LaneTag> du8;
  const LaneVec unit = hn::Set(d, 0x1p120f), s = hn::Set(d, scale);
  int64_t i = 0;
  for (; i + kVec <= n; i += kVec) {
    const auto byte = hn::PromoteTo(du, hn::LoadU(du8, reinterpret_cast<const uint8_t*>(in) + i));
    const auto magnitude = hn::And(byte, hn::Set(du, 0x7Fu));
    const auto sign = hn::ShiftLeft<24>(hn::Xor(byte, magnitude));
    auto value = hn::Mul(hn::BitCast(d, hn::ShiftLeft<20>(magnitude)), unit);
    const auto nan = hn::VecFromMask(du, hn::Eq(magnitude, hn::Set(du, 0x7Fu)));
    value = hn::Or(value, hn::BitCast(d, hn::Or(sign, hn::And(nan, hn::Set(du, 0x7FC00000u)))));
    hn::StoreU(hn::Mul(value, s), d, out + i);
  }
  for (; i < n; ++i) out[i] = e4m3_to_float(static_cast<uint8_t>(in[i])) * scale;
}

HWY_INLINE void values_row(KvFormat format, const std::byte* in, int64_t n, float* out) {
  if (format == KvFormat::kF32) {
    std::memcpy(out, in, static_cast<size_t>(n) * sizeof(float));
  } else {
    bf16_row(in, n, out);
  }
}

// One latent row, c_kv then k_pe, to out.
HWY_INLINE void latent_row_to_float(const KvLayout& l, const std::byte* row, float* out) {
  if (l.latent_format != KvFormat::kFP8) {
    return values_row(l.latent_format, row, l.kv_lora + l.rope, out);
  }
  constexpr int64_t kBlock = 128;
  const std::byte* scales = row + l.kv_lora;
  for (int64_t begin = 0; begin < l.kv_lora; begin += kBlock) {
    float scale;
    std::memcpy(&scale, scales + begin / kBlock * 4, sizeof(scale));
    e4m3_row(row + begin, std::min(kBlock, l.kv_lora - begin), scale, out + begin);
  }
  bf16_row(scales + (l.kv_lora + kBlock - 1) / kBlock * 4, l.rope, out + l.kv_lora);
}

// The indexer key in slot `slot` of a page's index part, to out.
HWY_INLINE void index_key_to_float(const KvLayout& l, const std::byte* page, int64_t slot,
                                   float* out) {
  if (l.index_format == KvFormat::kFP8) {
    float scale;
    std::memcpy(&scale, page + kPageTokens * l.index_dim + slot * 4, sizeof(scale));
    return e4m3_row(page + slot * l.index_dim, l.index_dim, scale, out);
  }
  const int64_t bytes = l.index_format == KvFormat::kF32 ? 4 : 2;
  values_row(l.index_format, page + slot * l.index_dim * bytes, l.index_dim, out);
}

HWY_INLINE void prefetch_bytes(const std::byte* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();
#endif  // HWY_SCALAR

#endif  // per-target include guard
