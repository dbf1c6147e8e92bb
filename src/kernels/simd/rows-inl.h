// Readers of one weight row for every format of weight.h: 32 columns at a time, as float, with the
// bits of dequantize_row. Included once per target by x_simd.cpp files.
//
//   Row row(w, r);   row.load32(c, out)    c a multiple of 32, c + 32 <= w.cols
//
// A slice whose groups of scales would split a step of 32 columns is read by AnyRow.
#if defined(TAMIS_KERNELS_SIMD_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TAMIS_KERNELS_SIMD_ROWS_INL_H_
#undef TAMIS_KERNELS_SIMD_ROWS_INL_H_
#else
#define TAMIS_KERNELS_SIMD_ROWS_INL_H_
#endif

#include <hwy/cache_control.h>

#include <cstring>

#include "kernels/simd/lanes-inl.h"
#include "kernels/weight.h"
#include "tensor/convert.h"

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {

constexpr int64_t kStep = 32;  // columns a reader delivers at a time
constexpr int64_t kStepF8 = kStep / kLanes;

template <typename T>
HWY_INLINE const T* at(const std::byte* p) {
  return reinterpret_cast<const T*>(p);
}

// The lines that hold columns [c, c + 32) of a row of kBits a value, `ahead` bytes further on.
template <int64_t kBits>
HWY_INLINE void prefetch32(const std::byte* p, int64_t c, int64_t ahead) {
  constexpr int64_t kLine = 64, kBytes = kStep * kBits / 8;
  p += c * kBits / 8 + ahead;
  TAMIS_UNROLL for (int64_t i = 0; i < kBytes; i += kLine) hwy::Prefetch(p + i);
}

HWY_INLINE const std::byte* row_begin(const Weight& w, int64_t r) {
  return w.data + r * w.row_bytes;
}

struct F32Row {
  static constexpr int64_t kBits = 32;
  const std::byte* p = nullptr;
  F32Row() = default;
  F32Row(const Weight& w, int64_t r) : p(row_begin(w, r)) {}
  HWY_INLINE void prefetch(int64_t c, int64_t ahead) const { prefetch32<kBits>(p, c, ahead); }
  HWY_INLINE void load32(int64_t c, F8* out) const {
    TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) {
      TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
        const std::byte* q = p + (c + j * kLanes + i * kPartLanes) * 4;
        out[j].part[i] = hn::BitCast(
            FloatTag(), hn::LoadU(hn::Repartition<uint8_t, FloatTag>(), at<uint8_t>(q)));
      }
    }
  }
};

struct Bf16Row {
  static constexpr int64_t kBits = 16;
  const std::byte* p = nullptr;
  Bf16Row() = default;
  Bf16Row(const Weight& w, int64_t r) : p(row_begin(w, r)) {}
  HWY_INLINE void prefetch(int64_t c, int64_t ahead) const { prefetch32<kBits>(p, c, ahead); }
  HWY_INLINE void load32(int64_t c, F8* out) const {
    const hn::RebindToUnsigned<FloatTag> u32;
    const hn::Rebind<uint16_t, FloatTag> u16;
    TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) {
      TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
        const std::byte* q = p + (c + j * kLanes + i * kPartLanes) * 2;
        const auto bits = hn::PromoteTo(u32, hn::LoadU(u16, at<uint16_t>(q)));
        out[j].part[i] = hn::BitCast(FloatTag(), hn::ShiftLeft<16>(bits));
      }
    }
  }
};

struct F16Row {
  static constexpr int64_t kBits = 16;
  const std::byte* p = nullptr;
  F16Row() = default;
  F16Row(const Weight& w, int64_t r) : p(row_begin(w, r)) {}
  HWY_INLINE void prefetch(int64_t c, int64_t ahead) const { prefetch32<kBits>(p, c, ahead); }
  HWY_INLINE void load32(int64_t c, F8* out) const {
    const hn::Rebind<uint16_t, FloatTag> u16;
    const hn::Rebind<hwy::float16_t, FloatTag> f16;
    TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) {
      TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
        const std::byte* q = p + (c + j * kLanes + i * kPartLanes) * 2;
        const auto bits = hn::LoadU(u16, at<uint16_t>(q));
        out[j].part[i] = hn::PromoteTo(FloatTag(), hn::BitCast(f16, bits));
      }
    }
  }
};

// e4m3 widened to float16 keeps its bits: sign, exponent (biased by 7 instead of 15), mantissa. The
// conversion of float16 then normalises subnormals, and 2^8 repairs the bias inside the scale.
struct Fp8Row {
  static constexpr int64_t kBits = 8;
  const std::byte* p = nullptr;
  const std::byte* scales = nullptr;
  int64_t col_offset = 0;
  Fp8Row() = default;
  Fp8Row(const Weight& w, int64_t r)
      : p(row_begin(w, r)),
        scales(w.scales + (r + w.row_offset) / kFp8Block * w.scale_stride * 4),
        col_offset(w.col_offset) {}
  HWY_INLINE void prefetch(int64_t c, int64_t ahead) const { prefetch32<kBits>(p, c, ahead); }
  HWY_INLINE void load32(int64_t c, F8* out) const {
    float s;
    std::memcpy(&s, scales + (c + col_offset) / kFp8Block * 4, sizeof(s));
    const F8 scale = set8(s * 256.0f);
    const hn::Rebind<uint16_t, FloatTag> u16;
    const hn::Rebind<uint8_t, FloatTag> u8;
    const hn::Rebind<int16_t, FloatTag> i16;
    const hn::Rebind<hwy::float16_t, FloatTag> f16;
    TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) {
      TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
        const std::byte* q = p + c + j * kLanes + i * kPartLanes;
        const auto high = hn::ShiftLeft<8>(hn::PromoteTo(u16, hn::LoadU(u8, at<uint8_t>(q))));
        const auto spread = hn::ShiftRight<1>(hn::BitCast(i16, high));  // sign, sign, exponent, ..
        auto bits = hn::And(hn::BitCast(u16, spread), hn::Set(u16, 0xBF80));
        const auto is_nan = hn::VecFromMask(u16, hn::ShiftLeft<1>(bits) == hn::Set(u16, 0x7F00));
        bits = hn::Or(bits, hn::And(is_nan, hn::Set(u16, 0x7E00)));
        out[j].part[i] = hn::PromoteTo(FloatTag(), hn::BitCast(f16, bits));
      }
      out[j] = mul8(out[j], scale);
    }
  }
};

HWY_INLINE void scaled_bytes(const int8_t* q, float scale, F8* out) {
  const hn::RebindToSigned<FloatTag> i32;
  const hn::Rebind<int8_t, FloatTag> i8;
  const F8 s = set8(scale);
  TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) {
    TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
      const auto ints = hn::PromoteTo(i32, hn::LoadU(i8, q + j * kLanes + i * kPartLanes));
      out[j].part[i] = hn::ConvertTo(FloatTag(), ints);
    }
    out[j] = mul8(out[j], s);
  }
}

// Scales of I8 and I4 in either of the formats a Weight may have.
struct GroupScales {
  const std::byte* p = nullptr;
  bool is_f32 = false;
  GroupScales() = default;
  GroupScales(const Weight& w, int64_t r) : is_f32(w.scale_dtype == DType::kF32) {
    const int64_t first = (r + w.row_offset) * w.scale_stride + w.col_offset / kIntGroup;
    p = w.scales + first * (is_f32 ? 4 : 2);
  }
  HWY_INLINE float at_column(int64_t c) const {
    if (is_f32) {
      float s;
      std::memcpy(&s, p + c / kIntGroup * 4, sizeof(s));
      return s;
    }
    uint16_t s;
    std::memcpy(&s, p + c / kIntGroup * 2, sizeof(s));
    return bf16_to_float(s);
  }
};

struct I8Row {
  static constexpr int64_t kBits = 8;
  const std::byte* p = nullptr;
  GroupScales scales;
  I8Row() = default;
  I8Row(const Weight& w, int64_t r) : p(row_begin(w, r)), scales(w, r) {}
  HWY_INLINE void prefetch(int64_t c, int64_t ahead) const { prefetch32<kBits>(p, c, ahead); }
  HWY_INLINE void load32(int64_t c, F8* out) const {
    scaled_bytes(at<int8_t>(p + c), scales.at_column(c), out);
  }
};

struct I4Row {
  static constexpr int64_t kBits = 4;
  const std::byte* p = nullptr;
  GroupScales scales;
  I4Row() = default;
  I4Row(const Weight& w, int64_t r) : p(row_begin(w, r)), scales(w, r) {}
  HWY_INLINE void prefetch(int64_t c, int64_t ahead) const { prefetch32<kBits>(p, c, ahead); }
  HWY_INLINE void load32(int64_t c, F8* out) const {
    const hn::FixedTag<uint8_t, 16> u8;
    const hn::FixedTag<uint16_t, 8> u16;
    HWY_ALIGN static constexpr uint8_t kSigned[16] = {0,   1,   2,   3,   4,   5,   6,   7,
                                                      248, 249, 250, 251, 252, 253, 254, 255};
    const auto table = hn::Load(u8, kSigned);
    const auto mask = hn::Set(u8, 15);
    const auto packed = hn::LoadU(u8, at<uint8_t>(p + c / 2));
    const auto shifted = hn::BitCast(u8, hn::ShiftRight<4>(hn::BitCast(u16, packed)));
    const auto even = hn::TableLookupBytes(table, hn::And(packed, mask));
    const auto odd = hn::TableLookupBytes(table, hn::And(shifted, mask));
    HWY_ALIGN uint8_t q[kStep];
    hn::Store(hn::InterleaveLower(u8, even, odd), u8, q);
    hn::Store(hn::InterleaveUpper(u8, even, odd), u8, q + 16);
    scaled_bytes(reinterpret_cast<const int8_t*>(q), scales.at_column(c), out);
  }
};

// Slices whose scale groups begin inside a step of 32 columns, and odd formats: any weight.
struct AnyRow {
  static constexpr int64_t kBits = 32;
  const Weight* w = nullptr;
  int64_t r = 0;
  AnyRow() = default;
  AnyRow(const Weight& weight, int64_t row) : w(&weight), r(row) {}
  HWY_INLINE void prefetch(int64_t, int64_t) const {}
  HWY_INLINE void load32(int64_t c, F8* out) const {
    float values[kStep];
    dequantize_row(*w, r, c, kStep, values);
    for (int64_t j = 0; j < kStepF8; ++j) out[j] = load8(values + j * kLanes);
  }
};

// Calls f.template operator()<Row>() with the reader of w.
template <typename F>
HWY_INLINE void with_row_reader(const Weight& w, const F& f) {
  if (w.col_offset % kStep != 0) return f.template operator()<AnyRow>();
  switch (w.dtype) {
    case DType::kF32:
      return f.template operator()<F32Row>();
    case DType::kF16:
      return f.template operator()<F16Row>();
    case DType::kBF16:
      return f.template operator()<Bf16Row>();
    case DType::kF8E4M3:
      if (w.scale_dtype != DType::kF32) return f.template operator()<AnyRow>();
      return f.template operator()<Fp8Row>();
    case DType::kI8:
      return f.template operator()<I8Row>();
    case DType::kI4:
      return f.template operator()<I4Row>();
    default:
      return f.template operator()<AnyRow>();
  }
}

// Columns [c, c + count), count < 32, of row r, padded with zeros to a multiple of 8; returns how
// many vectors of 8 that are.
HWY_INLINE int64_t load_tail(const Weight& w, int64_t r, int64_t c, int64_t count, F8* out) {
  float values[kStep] = {};
  dequantize_row(w, r, c, count, values);
  const int64_t vectors = (count + kLanes - 1) / kLanes;
  for (int64_t j = 0; j < vectors; ++j) out[j] = load8(values + j * kLanes);
  return vectors;
}

}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();
#endif  // HWY_SCALAR

#endif  // per-target include guard
