#include "kernels/matmul/matmul.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/matmul/matmul_impl.h"
#include "kernels/simd/targets.h"

namespace tamis {
namespace {

template <typename T>
using Batch = std::span<const MatmulArgs<T>>;

constexpr Implementation<Batch<float>> kFloat[] = {
    {"cuda", [](const Batch<float>&) { return true; }, matmuls_cuda},
    // Rounds the factors: runs where it is asked for by name.
    {"cuda_bf16", [](const Batch<float>&) { return true; }, matmuls_bf16_cuda},
    {"simd", [](const Batch<float>&) { return vectors_available(); }, matmuls_simd},
    {"reference", [](const Batch<float>&) { return true; }, matmuls_reference<float>},
};
constexpr Implementation<Batch<double>> kDouble[] = {
    {"reference", [](const Batch<double>&) { return true; }, matmuls_reference<double>},
};

}  // namespace

template <typename T>
void matmuls_reference(KernelContext& context, const std::span<const MatmulArgs<T>>& args) {
  for (const MatmulArgs<T>& p : args) {
    context.pool().run(p.m, [&](int64_t i, int) {
      for (int64_t j = 0; j < p.n; ++j) {
        double sum = p.accumulate ? p.c[i * p.c_row + j] : 0;
        for (int64_t l = 0; l < p.inner; ++l) {
          sum +=
              static_cast<double>(p.a[i * p.a_row + l * p.a_col]) * p.b[l * p.b_row + j * p.b_col];
        }
        p.c[i * p.c_row + j] = static_cast<T>(sum);
      }
    });
  }
}

template <>
void matmuls<float>(KernelContext& context, std::span<const MatmulArgs<float>> args) {
  for (const MatmulArgs<float>& p : args) {
    if (p.c_bf16 == nullptr && p.add == nullptr) continue;
    if (!reads_bf16(context, p.m, {p.n}) || p.accumulate) {
      throw UsageError("matmul: c_bf16 and add are for new products of rounded factors");
    }
  }
  dispatch<Batch<float>>(context, "matmul", kFloat, args);
}

template <>
void matmuls<double>(KernelContext& context, std::span<const MatmulArgs<double>> args) {
  dispatch<Batch<double>>(context, "matmul", kDouble, args);
}

bool reads_bf16(const KernelContext& context, int64_t rows, std::initializer_list<int64_t> widths) {
  const bool rounds = context.backend() == Backend::kCuda &&
                      context.allowed("matmul", "cuda_bf16") && !context.allowed("matmul", "cuda");
  const auto wide = [](int64_t width) { return width >= kNarrowProduct && width % 8 == 0; };
  return rounds && rows >= kNarrowProduct && std::all_of(widths.begin(), widths.end(), wide);
}

template void matmuls_reference(KernelContext&, const std::span<const MatmulArgs<float>>&);
template void matmuls_reference(KernelContext&, const std::span<const MatmulArgs<double>>&);

}  // namespace tamis
