// Where the model rounds. Exact: weights dequantised, float32 throughout. Native: the order of
// DeepSeek's FP8 inference code: bf16 between operations, FP8 products with activations quantised
// per 128 columns, an FP8 indexer behind a Hadamard rotation. Int8: as exact, but what is
// multiplied by weights in int8 or int4 is rounded to 8 bits first (kernels/linear/linear_int8.h),
// and attention multiplies integers of 12 bits (kernels/mla_sparse/mla_sparse_int16.h).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/linear/linear.h"

namespace tamis {

enum class Precision : uint8_t { kExact, kNative, kInt8 };

// "exact", "native", "int8"; UsageError for any other name.
Precision precision_from_name(std::string_view name);
std::string_view precision_name(Precision precision);

struct Numerics {
  Precision precision = Precision::kExact;
  bool ue8m0 = false;  // native: activation and key scales are powers of two

  bool native() const { return precision == Precision::kNative; }
  bool int8() const { return precision == Precision::kInt8; }

  // Projections: exact products, FP8 / bf16 ones rounded to bf16, or products of integers.
  void project(KernelContext& context, std::span<const LinearArgs> args) const;
};

}  // namespace tamis
