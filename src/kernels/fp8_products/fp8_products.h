// The products of linear layers and experts with FP8 factors on FP8 tensor cores: e4m3 codes and a
// scale for each block, as fp8_round has them, multiplied 128 inner indices at a time. The sums of
// such a block, which the tensor cores keep with about 14 bits, are scaled and added in float32.
//
//   forward    y[i, o] = sum_c X[i, c] W[o, c]                X across rows, W in squares
//   backward   dx[i, c] = or += sum_o dY[i, o] W[o, c]        dY across rows
//              dw[o, c] += sum_i dY[i, o] X[i, c]             both down columns
//
// With groups row i belongs to the group g whose rows offsets[g] .. offsets[g+1) are, and meets the
// matrices at w + g * stride and dw + g * stride; blocks down begin with each group. The order of
// the sums depends on shapes and offsets alone.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"

namespace tamis {

// [rows, width], `stride` apart: float32, or bf16 if x_bf16 is not null.
struct Fp8Rows {
  const float* x = nullptr;
  const uint16_t* x_bf16 = nullptr;
  int64_t stride = 0, rows = 0, width = 0;
};

struct Fp8Groups {
  const int64_t* offsets = nullptr;  // [groups + 1] on the device, from 0 to all rows; null: none
  int64_t groups = 1, stride = 0;
};

struct Fp8Layer {
  const float* w = nullptr;  // [outputs, width of x]
  int64_t outputs = 0;
  float* y = nullptr;  // [rows, outputs]
};

struct Fp8ForwardArgs {
  Fp8Rows x;
  std::span<const Fp8Layer> layers;
  Fp8Groups groups;
};

struct Fp8BackwardArgs {
  Fp8Rows dy, x;             // [rows, outputs], [rows, width]
  const float* w = nullptr;  // [outputs, width]
  float* dx = nullptr;       // [rows, width]; null: not wanted
  bool add_dx = false;
  float* dw = nullptr;  // [outputs, width]
  Fp8Groups groups;
};

// Whether a context's products run here: on Hopper, unless ("fp8_products", "cuda") is forced; else
// they are bf16 products of what fp8_round makes. UsageError if "cuda_sm90" is forced elsewhere.
bool fp8_products_run(const KernelContext& context);
void fp8_products_forward(KernelContext& context, const Fp8ForwardArgs& args);
void fp8_products_backward(KernelContext& context, const Fp8BackwardArgs& args);

}  // namespace tamis
