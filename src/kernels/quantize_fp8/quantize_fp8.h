// FP8 quantisation as DeepSeek's kernels and FlashMLA do it, byte for byte.
//
// act_quant: per row and 128 columns  amax = max(max|x|, 1e-4), s = amax * float(1/448), with
//   ue8m0 s = 2^ceil(log2 s) on the bits; q = e4m3(clamp(x / s, -448, 448)), nearest even.
// kv row: per 128 values  s = 2^ceil(log2(max(amax / 448, 1e-4))): here the clamp is on the scale.
// block_quant: 128x128 blocks of a weight  s = max(amax, 1e-4) / 448, optionally a power of two.
#pragma once

#include <cstdint>

namespace tamis {

// x [n] -> q [n], scales [ceil(n/128)].
void act_quant_row(const float* x, int64_t n, bool ue8m0, uint8_t* q, float* scales);
void kv_quant_row(const float* x, int64_t n, uint8_t* q, float* scales);
// w [rows, cols] -> q the same shape, scales [ceil(rows/128), ceil(cols/128)].
void block_quant(const float* w, int64_t rows, int64_t cols, bool ue8m0, uint8_t* q, float* scales);

}  // namespace tamis
