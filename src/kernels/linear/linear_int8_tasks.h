// How linear_int8 is cut for its vector code, shared by the part that plans (linear_int8_simd.cpp)
// and the part that computes (linear_int8_tiles_simd.cpp).
#pragma once

#include <cstdint>

#include "kernels/linear/linear.h"

namespace tamis {

constexpr int64_t kLaneRows = 8;                    // rows of W in the lanes of a vector
constexpr int64_t kPanelRows = 16;                  // rows of W in a panel
constexpr int64_t kChunkGroups = 16;                // groups of columns in a panel
constexpr int64_t kTileX = 4;                       // rows of x in a register tile
constexpr int64_t kBlockX = 264;                    // most rows of x of a task
constexpr int64_t kDirectRows = 4;                  // most rows of x of the direct path
constexpr int64_t kStreamRows = 8;                  // up to so many rows of x, W is read as it lies
constexpr int64_t kTaskBytes = 262144;              // weights of a task with few rows of x
constexpr int64_t kAhead = 256;                     // bytes of W fetched ahead in the direct path
constexpr int64_t kAheadScaleRows = 2;              // rows of scales fetched ahead
constexpr int64_t kQuads = kIntGroup / 4;           // of columns in a group
constexpr int64_t kQuadBytes = kPanelRows * 4 * 2;  // of four columns, as int16
constexpr int64_t kGroupBytes = kQuads * kQuadBytes;
constexpr int64_t kPanelFloats = kChunkGroups * kGroupBytes / 4;
constexpr int64_t kPanelScales = kPanelRows * kChunkGroups;
static_assert(kPanelRows == 2 * kLaneRows && kBlockX % kTileX == 0);

// Some rows of x, quantised: for every chunk of groups, [rows][groups of the chunk][32] values, and
// beside them s_x [rows][groups of the chunk]. Up to kDirectRows rows of x a value is a byte, in
// the order of the format's Group; for more rows an int16, of every four of that order first the
// two even ones, for all fours of the group, then the odd ones.
struct QuantisedX {
  int8_t* values;
  float* scales;
  int64_t rows;
};

// Rows [row, row + rows) of W times rows [m, m + x.rows) of x.
struct Int8Task {
  const LinearArgs* args;
  int64_t row, rows, m;
  QuantisedX x;
  float* panel;  // blocked: room for kPanelFloats + kPanelScales
};

struct QuantiseTask {
  const LinearArgs* args;
  int64_t m;
  QuantisedX x;
};

// Of a value of x where x has m rows.
inline int64_t value_bytes(int64_t m) { return m > kDirectRows ? 2 : 1; }

inline int64_t group_count(int64_t cols) { return (cols + kIntGroup - 1) / kIntGroup; }

// Both work on one thread.
void run_quantise_task(const QuantiseTask& task);
void run_int8_task(const Int8Task& task);

}  // namespace tamis
