// The k best of each row, under one total order: score descending, then position ascending.
//
// Exact on any distribution: equal scores, one narrow range, infinities. -0 and +0 are equal. A NaN
// ranks below everything and is reported, never chosen while another candidate is left.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

struct TopkArgs {
  const float* scores = nullptr;  // [rows, score_stride]
  int64_t score_stride = 0;
  int64_t rows = 0;
  const int32_t* lengths = nullptr;  // [rows]: candidates of a row are positions 0 .. length-1
  int64_t k = 0;
  int32_t* indices = nullptr;  // [rows, k]: ascending; entries past min(k, length) are -1
  uint8_t* has_nan = nullptr;  // [rows], optional: 1 where a candidate was NaN
};

void topk(KernelContext& context, const TopkArgs& args);

// One row, for operations that fuse the selection. `work` holds `length` floats of scratch.
// Returns false if a candidate was NaN.
bool topk_row(const float* scores, int64_t length, int64_t k, float* work, int32_t* indices);

}  // namespace tamis
