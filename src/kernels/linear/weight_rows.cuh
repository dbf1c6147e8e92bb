// Rows of W (BF16, or F8_E4M3 with kFp8) as the native products read them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/weight.h"

namespace tamis::native {

// Whether rows of W can be read in 16 bytes. The last block may be short.
template <bool kFp8>
__device__ inline bool wide_rows(const Weight& w) {
  return reinterpret_cast<uintptr_t>(w.data) % 16 == 0 && w.row_bytes % 16 == 0 &&
         w.cols % (kFp8 ? 16 : 8) == 0;
}

// kBytes bytes of a row of W from its byte `begin` on, zeros past its end, one element at a time.
template <bool kFp8, int kBytes>
__device__ inline void gather(const Weight& w, int64_t row, int64_t begin, void* to) {
  constexpr int kSize = kFp8 ? 1 : 2;
  const std::byte* from = w.data + row * w.row_bytes;
  for (int i = 0; i < kBytes / kSize; ++i) {
    const int64_t c = begin / kSize + i;
    if constexpr (kFp8) {
      static_cast<uint8_t*>(to)[i] =
          c < w.cols ? reinterpret_cast<const uint8_t*>(from)[c] : uint8_t{0};
    } else {
      static_cast<uint16_t*>(to)[i] =
          c < w.cols ? reinterpret_cast<const uint16_t*>(from)[c] : uint16_t{0};
    }
  }
}

}  // namespace tamis::native
