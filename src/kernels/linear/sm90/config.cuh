// Shapes, shared memory and work of linear's kernel for Hopper (tile.cuh).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/linear/native_products.cuh"

namespace tamis::sm90 {

constexpr int kWarpgroup = 128, kMultipliers = 2;  // threads; warpgroups that multiply
constexpr int kThreads = (kMultipliers + 1) * kWarpgroup;
constexpr int kRows = kMultipliers * 64;  // of W, of a block
constexpr int kColumns = 64;              // of a stage
constexpr int kXRows = 192;               // of x, of a block, at most
constexpr int kCluster = 2;               // blocks with the same rows of x
constexpr int kAtomRows = 8, kAtomBytes = kAtomRows * kColumns * 2;
constexpr int kMostProducts = 1024;  // of one launch

template <bool kFp8_>
struct Config {
  static constexpr bool kFp8 = kFp8_;
  static constexpr int kSize = kFp8 ? 1 : 2;             // bytes of an element of W
  static constexpr int kChunks = kColumns * kSize / 16;  // 16-byte pieces of a row of W in a stage
  // Eight threads read chunks t (FP8) or 2t + c of two rows at once and must meet all banks.
  static constexpr int kPitch = kFp8 ? 64 : 144;
  static constexpr int kWeightBytes = kRows * kPitch, kXBytes = kXRows / kAtomRows * kAtomBytes;
  static constexpr int kStageBytes = kXBytes + kWeightBytes + kXRows * 4;
  static constexpr int kTableBytes = (kMostProducts + 1) * 4;
  static constexpr int kStages = (227 * 1024 - kTableBytes - 256) / kStageBytes;
  static_assert(kStages >= 4);

  struct Shared {
    std::byte x[kStages][kXBytes];       // atoms, in wgmma's order
    std::byte w[kStages][kWeightBytes];  // rows as they are, kPitch apart
    float x_scales[kStages][kXRows];     // of a block of columns, in its second stage
    uint64_t full[kStages], empty[kStages];
    int first_tile[kMostProducts + 1];  // of a product
  };
  static_assert(sizeof(Shared) <= 227 * 1024);
};

// Where the prepared rows of x of group g begin, in rows: a multiple of 8, and beyond the last row
// of the group before it.
__device__ inline int64_t first_atom_row(int64_t first, int64_t g) {
  return (first + kAtomRows - 1) / kAtomRows * kAtomRows + kAtomRows * g;
}
// Rows of x that are prepared for `m` rows in `groups` groups (0: no groups).
__host__ __device__ inline int64_t atom_rows(int64_t m, int64_t groups) {
  return (m + kAtomRows - 1) / kAtomRows * kAtomRows + kAtomRows * groups;
}

}  // namespace tamis::sm90
