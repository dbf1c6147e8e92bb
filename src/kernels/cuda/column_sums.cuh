// Sums over the rows of an array, column by column, in a fixed order: rows in chunks of
// kColumnRows, in a chunk eight running sums (row r to sum r % 8) added in order; then kPartLanes
// running sums of the chunks (chunk c to sum c % kPartLanes), added in order. In double.
#pragma once

#include "kernels/cuda/launch.cuh"

namespace tamis {

constexpr int kColumnRows = 128;
constexpr int kColumnLanes = 8;
constexpr int kColumnWidth = 32;

// part [chunks, width]. term(row, column) is a double.
template <typename Term>
__global__ void __launch_bounds__(kColumnWidth* kColumnLanes)
    column_parts(const Term term, int64_t rows, int64_t width, double* part) {
  const int lane = static_cast<int>(threadIdx.x) / kColumnWidth;
  const int own = static_cast<int>(threadIdx.x) % kColumnWidth;
  const int64_t column = int64_t{blockIdx.x} * kColumnWidth + own;
  const int64_t first = int64_t{blockIdx.y} * kColumnRows;
  const int64_t last = min(first + kColumnRows, rows);
  __shared__ double sums[kColumnLanes][kColumnWidth];
  double sum = 0;
  if (column < width) {
    for (int64_t r = first + lane; r < last; r += kColumnLanes) sum += term(r, column);
  }
  sums[lane][own] = sum;
  __syncthreads();
  if (lane > 0 || column >= width) return;
  for (int i = 1; i < kColumnLanes; ++i) sum += sums[i][own];
  part[blockIdx.y * width + column] = sum;
}

constexpr int kPartLanes = 32;

// to[column] += the sum of its parts.
static __global__ void __launch_bounds__(kColumnWidth* kPartLanes)
    add_column_parts(const double* part, int64_t chunks, int64_t width, float* to) {
  __shared__ double sums[kPartLanes][kColumnWidth];
  const int lane = static_cast<int>(threadIdx.x) / kColumnWidth;
  const int own = static_cast<int>(threadIdx.x) % kColumnWidth;
  const int64_t column = int64_t{blockIdx.x} * kColumnWidth + own;
  double sum = 0;
  if (column < width) {
#pragma unroll 8
    for (int64_t i = lane; i < chunks; i += kPartLanes) sum += part[i * width + column];
  }
  sums[lane][own] = sum;
  __syncthreads();
  if (lane > 0 || column >= width) return;
  for (int i = 1; i < kPartLanes; ++i) sum += sums[i][own];
  to[column] += static_cast<float>(sum);
}

// to [width] += the sums of the parts [chunks, width].
inline void add_parts_of_columns(KernelContext& context, const double* part, int64_t chunks,
                                 int64_t width, float* to) {
  add_column_parts<<<static_cast<unsigned>((width + kColumnWidth - 1) / kColumnWidth),
                     kColumnWidth * kPartLanes, 0, stream_of(context)>>>(part, chunks, width, to);
  check_launch("sums of columns (parts)");
}

// to [width] += the sums of term over `rows` rows; `slot` of device_scratch holds the parts.
template <typename Term>
void add_column_sums(KernelContext& context, const Term& term, int64_t rows, int64_t width,
                     int slot, float* to) {
  const int64_t chunks = (rows + kColumnRows - 1) / kColumnRows;
  auto* part = static_cast<double*>(
      device_scratch(context, slot, chunks * width * static_cast<int64_t>(sizeof(double))));
  const dim3 grid(static_cast<unsigned>((width + kColumnWidth - 1) / kColumnWidth),
                  static_cast<unsigned>(chunks));
  column_parts<<<grid, kColumnWidth * kColumnLanes, 0, stream_of(context)>>>(term, rows, width,
                                                                             part);
  check_launch("sums of columns");
  add_parts_of_columns(context, part, chunks, width, to);
}

}  // namespace tamis
