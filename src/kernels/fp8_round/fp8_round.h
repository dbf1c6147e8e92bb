// The factors of FP8 training: values rounded to e4m3 with a power of two for each block, and what
// they then stand for. After the DeepSeek-V3 report, 3.3: activations and gradients in blocks of
// 128 values along the inner index of their product, weights in blocks of 128x128.
//
//   y = s e4m3(x / s)     s the power of two at or above max|x| / 448 of the block
//
// Nearest even. Every y has 4 significant bits, so it is exact in bf16: products of such bf16
// factors are products of the FP8 ones. Of a weight s is that of block_quant (quantize_fp8.h) with
// ue8m0, what `tamis convert --to fp8` stores. Otherwise it is that of act_quant without its floor
// of 1e-4, below which the gradient of a mean over many tokens lies as a whole: s is at least
// 2^-100. What is not finite does not become finite.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

enum class Fp8Blocks : uint8_t {
  kAcross,  // 1x128: along rows
  kDown,    // 128x1: along columns, for products over the rows
  kBoth,    // the two of them, each to an array of its own
  kSquare,  // 128x128, a weight's
};

// T is float, or double on the host, which is rounded to float first.
template <typename T>
struct Fp8RoundArgs {
  Fp8Blocks blocks = Fp8Blocks::kAcross;
  const T* x = nullptr;              // [rows, width], x_stride apart
  const uint16_t* x_bf16 = nullptr;  // or these values, if not null; not of kSquare
  int64_t x_stride = 0, rows = 0, width = 0;
  // kDown, kBoth: blocks down begin with each group of rows offsets[g] .. offsets[g+1], ascending
  // from 0 to `rows`; null: one group. kSquare: as many matrices [rows, width] of x, group_stride
  // apart.
  const int64_t* offsets = nullptr;
  int64_t groups = 1, group_stride = 0;
  // [rows, width], or of kSquare [groups, rows, width], side by side: one of the two.
  T* y = nullptr;
  uint16_t* y_bf16 = nullptr;
  // kBoth: what kDown makes; y is what kAcross makes.
  T* down = nullptr;
  uint16_t* down_bf16 = nullptr;
};
template <typename T>
void fp8_round(KernelContext& context, const Fp8RoundArgs<T>& args);

}  // namespace tamis
