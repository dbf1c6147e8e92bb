#include "kernels/array_ops/array_ops.h"

#include <algorithm>
#include <type_traits>

#include "kernels/array_ops/array_ops_impl.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

// Only float arrays may be on a device.
template <typename T>
bool on_device(const KernelContext& context) {
  return std::is_same_v<T, float> && context.backend() == Backend::kCuda;
}

}  // namespace

template <typename T>
void add_values(KernelContext& context, const T* x, int64_t n, T* y) {
  if constexpr (std::is_same_v<T, float>) {
    if (on_device<T>(context)) return add_values_cuda(context, x, n, y);
  }
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

template <typename T>
void scale_values(KernelContext& context, T* x, int64_t n, T factor) {
  if constexpr (std::is_same_v<T, float>) {
    if (on_device<T>(context)) return scale_values_cuda(context, x, n, factor);
  }
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

void round_values(KernelContext& context, const float* x, int64_t n, uint16_t* y) {
  if (on_device<float>(context)) return round_values_cuda(context, x, n, y);
  std::transform(x, x + n, y, float_to_bf16);
}

template <typename T>
void copy_columns(KernelContext& context, const CopyColumnsArgs<T>& a) {
  if constexpr (std::is_same_v<T, float>) {
    if (on_device<T>(context)) return copy_columns_cuda(context, a);
  }
  for (int64_t r = 0; r < a.rows; ++r) {
    std::copy_n(a.from + r * a.from_stride, a.width, a.to + r * a.to_stride);
  }
}

template <typename T>
void pick_rows(KernelContext& context, const PickRowsArgs<T>& a) {
  if constexpr (std::is_same_v<T, float>) {
    if (on_device<T>(context)) return pick_rows_cuda(context, a);
  }
  for (int64_t r = 0; r < a.rows; ++r) {
    std::copy_n(a.x + a.row[r] * a.width, a.width, a.y + r * a.width);
  }
}

template <typename T>
void return_rows(KernelContext& context, const ReturnRowsArgs<T>& a) {
  if constexpr (std::is_same_v<T, float>) {
    if (on_device<T>(context)) return return_rows_cuda(context, a);
  }
  for (int64_t r = 0; r < a.rows; ++r) {
    T* to = a.x + a.row[r] * a.width;
    for (int64_t i = 0; i < a.width; ++i) to[i] += a.y[r * a.width + i];
  }
}

template <typename T>
void add_experts(KernelContext& context, const AddExpertsArgs<T>& a) {
  if constexpr (std::is_same_v<T, float>) {
    if (on_device<T>(context)) return add_experts_cuda(context, a);
  }
  context.pool().run(a.tokens, [&](int64_t t, int) {
    for (int64_t pair = t * a.num_chosen; pair < (t + 1) * a.num_chosen; ++pair) {
      const T* row = a.rows + a.row_of[pair] * a.width;
      const T weight = a.weights[pair];
      for (int64_t i = 0; i < a.width; ++i) a.y[t * a.width + i] += weight * row[i];
    }
  });
}

template <typename T>
void largest_columns(KernelContext& context, const LargestColumnsArgs<T>& a) {
  if constexpr (std::is_same_v<T, float>) {
    if (on_device<T>(context)) return largest_columns_cuda(context, a);
  }
  context.pool().run(a.rows, [&](int64_t r, int) {
    const T* row = a.x + r * a.width;
    int64_t best = 0;
    for (int64_t i = 1; i < a.width; ++i) best = row[i] > row[best] ? i : best;
    a.best[r] = static_cast<int32_t>(best);
  });
}

#define TAMIS_ARRAY_OPS(T)                                               \
  template void add_values(KernelContext&, const T*, int64_t, T*);       \
  template void scale_values(KernelContext&, T*, int64_t, T);            \
  template void copy_columns(KernelContext&, const CopyColumnsArgs<T>&); \
  template void pick_rows(KernelContext&, const PickRowsArgs<T>&);       \
  template void return_rows(KernelContext&, const ReturnRowsArgs<T>&);   \
  template void add_experts(KernelContext&, const AddExpertsArgs<T>&);   \
  template void largest_columns(KernelContext&, const LargestColumnsArgs<T>&);
TAMIS_ARRAY_OPS(float)
TAMIS_ARRAY_OPS(double)
#undef TAMIS_ARRAY_OPS

}  // namespace tamis
