// Readers of one weight row for every format of weight.h, as float with the bits of
// dequantize_row. Included once per target by x_simd.cpp files. A reader works in steps of 32
// columns, c a multiple of 32, c + 32 <= w.cols:
//
//   Row row(w, r);
//   F8 scale;
//   if (row.prepare(c, scale)) ..       scale of the step; true: this step is special, use
//   special32 F8 w = row.get(c, j, scale);        columns c + 8j .. c + 8j + 7
//
// A slice whose groups of scales would split a step of 32 columns is read by AnyRow.
#if defined(TAMIS_KERNELS_SIMD_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TAMIS_KERNELS_SIMD_ROWS_INL_H_
#undef TAMIS_KERNELS_SIMD_ROWS_INL_H_
#else
#define TAMIS_KERNELS_SIMD_ROWS_INL_H_
#endif

#include <hwy/cache_control.h>

#include <cmath>
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
  HWY_INLINE bool prepare(int64_t, F8&) const { return false; }
  HWY_INLINE F8 get(int64_t c, int64_t j, F8) const {
    const hn::Repartition<uint8_t, FloatTag> u8;
    F8 out;
    TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
      const std::byte* q = p + (c + j * kLanes + i * kPartLanes) * 4;
      out.part[i] = hn::BitCast(FloatTag(), hn::LoadU(u8, at<uint8_t>(q)));
    }
    return out;
  }
};

struct Bf16Row {
  static constexpr int64_t kBits = 16;
  const std::byte* p = nullptr;
  Bf16Row() = default;
  Bf16Row(const Weight& w, int64_t r) : p(row_begin(w, r)) {}
  HWY_INLINE bool prepare(int64_t, F8&) const { return false; }
  HWY_INLINE F8 get(int64_t c, int64_t j, F8) const {
    const hn::RebindToUnsigned<FloatTag> u32;
    const hn::Rebind<uint16_t, FloatTag> u16;
    F8 out;
    TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
      const std::byte* q = p + (c + j * kLanes + i * kPartLanes) * 2;
      const auto bits = hn::PromoteTo(u32, hn::LoadU(u16, at<uint16_t>(q)));
      out.part[i] = hn::BitCast(FloatTag(), hn::ShiftLeft<16>(bits));
    }
    return out;
  }
};

struct F16Row {
  static constexpr int64_t kBits = 16;
  const std::byte* p = nullptr;
  F16Row() = default;
  F16Row(const Weight& w, int64_t r) : p(row_begin(w, r)) {}
  HWY_INLINE bool prepare(int64_t, F8&) const { return false; }
  HWY_INLINE F8 get(int64_t c, int64_t j, F8) const {
    const hn::Rebind<uint16_t, FloatTag> u16;
    const hn::Rebind<hwy::float16_t, FloatTag> f16;
    F8 out;
    TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
      const std::byte* q = p + (c + j * kLanes + i * kPartLanes) * 2;
      const auto bits = hn::LoadU(u16, at<uint16_t>(q));
      out.part[i] = hn::PromoteTo(FloatTag(), hn::BitCast(f16, bits));
    }
    return out;
  }
};

// The seven low bits of an e4m3 byte, moved to the exponent and mantissa of a float, are its value
// times 2^-120 (subnormals too: they become subnormal floats); the scale repairs that. Special are
// the NaN code, which does not carry over, and scales too large for the repair.
struct Fp8Row {
  static constexpr int64_t kBits = 8;
  static constexpr float kRepair = 0x1p120f, kLargestScale = 0x1p7f;
  const std::byte* p = nullptr;
  const std::byte* scales = nullptr;
  int64_t col_offset = 0;
  Fp8Row() = default;
  Fp8Row(const Weight& w, int64_t r)
      : p(row_begin(w, r)),
        scales(w.scales + (r + w.row_offset) / kFp8Block * w.scale_stride * 4),
        col_offset(w.col_offset) {}
  HWY_INLINE bool prepare(int64_t c, F8& scale) const {
    float s;
    std::memcpy(&s, scales + (c + col_offset) / kFp8Block * 4, sizeof(s));
    scale = set8(s * kRepair);
    const hn::CappedTag<uint8_t, kStep> u8;
    const auto code = hn::Set(u8, 0x7F);
    auto is_nan = hn::And(hn::LoadU(u8, at<uint8_t>(p + c)), code) == code;
    TAMIS_UNROLL for (int64_t i = 1; i < kParts; ++i) {
      const auto bytes = hn::LoadU(u8, at<uint8_t>(p + c + i * kStep / kParts));
      is_nan = hn::Or(is_nan, hn::And(bytes, code) == code);
    }
    return !(hn::AllFalse(u8, is_nan) && std::fabs(s) < kLargestScale);
  }
  HWY_INLINE F8 get(int64_t c, int64_t j, F8 scale) const {
    const hn::RebindToSigned<FloatTag> i32;
    const hn::Rebind<int8_t, FloatTag> i8;
    F8 out;
    TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
      const auto q = hn::LoadU(i8, at<int8_t>(p + c + j * kLanes + i * kPartLanes));
      const auto moved = hn::ShiftLeft<20>(hn::PromoteTo(i32, q));  // the sign fills bits 27 to 31
      const auto kept = hn::And(moved, hn::Set(i32, static_cast<int32_t>(0x87F00000u)));
      out.part[i] = hn::BitCast(FloatTag(), kept);
    }
    return mul8(out, scale);
  }
};

// The BF16 scales of I8 and I4.
struct GroupScales {
  const std::byte* p = nullptr;
  GroupScales() = default;
  GroupScales(const Weight& w, int64_t r)
      : p(w.scales + ((r + w.row_offset) * w.scale_stride + w.col_offset / kIntGroup) * 2) {}
  HWY_INLINE float at_column(int64_t c) const {
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
  HWY_INLINE bool prepare(int64_t c, F8& scale) const {
    scale = set8(scales.at_column(c));
    return false;
  }
  HWY_INLINE F8 get(int64_t c, int64_t j, F8 scale) const {
    const hn::RebindToSigned<FloatTag> i32;
    const hn::Rebind<int8_t, FloatTag> i8;
    F8 out;
    TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
      const auto q = hn::LoadU(i8, at<int8_t>(p + c + j * kLanes + i * kPartLanes));
      out.part[i] = hn::ConvertTo(FloatTag(), hn::PromoteTo(i32, q));
    }
    return mul8(out, scale);
  }
};

// Eight values are four bytes, value l in bits 4l: shifted to the top and masked they are the value
// times 2^28; the scale repairs that. Special are scales so small that the repair would round.
struct I4Row {
  static constexpr int64_t kBits = 4;
  static constexpr float kRepair = 0x1p-28f, kSmallestScale = 0x1p-90f;
  const std::byte* p = nullptr;
  GroupScales scales;
  I4Row() = default;
  I4Row(const Weight& w, int64_t r) : p(row_begin(w, r)), scales(w, r) {}
  HWY_INLINE bool prepare(int64_t c, F8& scale) const {
    const float s = scales.at_column(c);
    scale = set8(s * kRepair);
    return s != 0 && std::fabs(s) < kSmallestScale;
  }
  HWY_INLINE F8 get(int64_t c, int64_t j, F8 scale) const {
    const hn::RebindToSigned<FloatTag> i32;
    int32_t packed;
    std::memcpy(&packed, p + c / 2 + j * 4, sizeof(packed));
    F8 out;
    TAMIS_UNROLL for (int64_t i = 0; i < kParts; ++i) {
      const auto lane = hn::Iota(i32, static_cast<int32_t>(i * kPartLanes));
      const auto up = hn::Set(i32, packed) << (hn::Set(i32, 28) - hn::ShiftLeft<2>(lane));
      const auto kept = hn::And(up, hn::Set(i32, static_cast<int32_t>(0xF0000000u)));
      out.part[i] = hn::ConvertTo(FloatTag(), kept);
    }
    return mul8(out, scale);
  }
};

// Slices whose scale groups begin inside a step of 32 columns, and odd formats: any weight.
struct AnyRow {
  static constexpr int64_t kBits = 32;
  const std::byte* p = nullptr;
  const Weight* w = nullptr;
  int64_t r = 0;
  float values[kStep] = {};
  AnyRow() = default;
  AnyRow(const Weight& weight, int64_t row) : p(row_begin(weight, row)), w(&weight), r(row) {}
  HWY_INLINE bool prepare(int64_t c, F8&) {
    dequantize_row(*w, r, c, kStep, values);
    return false;
  }
  HWY_INLINE F8 get(int64_t, int64_t j, F8) const { return load8(values + j * kLanes); }
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
      if (w.scale_dtype != DType::kBF16) return f.template operator()<AnyRow>();
      return f.template operator()<I8Row>();
    case DType::kI4:
      if (w.scale_dtype != DType::kBF16) return f.template operator()<AnyRow>();
      return f.template operator()<I4Row>();
    default:
      return f.template operator()<AnyRow>();
  }
}

// Columns [c, c + count), count <= 32, of row r by the definition, padded with zeros to a step: the
// end of a row, and special steps.
HWY_INLINE void special32(const Weight& w, int64_t r, int64_t c, int64_t count, F8* out) {
  float values[kStep] = {};
  dequantize_row(w, r, c, count, values);
  TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) out[j] = load8(values + j * kLanes);
}

// Columns [c, c + 32) of row r.
template <typename Row>
HWY_INLINE void load32(const Weight& w, Row& row, int64_t r, int64_t c, F8* out) {
  F8 scale;
  if (HWY_UNLIKELY(row.prepare(c, scale))) return special32(w, r, c, kStep, out);
  TAMIS_UNROLL for (int64_t j = 0; j < kStepF8; ++j) out[j] = row.get(c, j, scale);
}

}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();
#endif  // HWY_SCALAR

#endif  // per-target include guard
