// linear and grouped products on CUDA: which kernel runs which product.
#include <algorithm>
#include <string>

#include "base/error.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/elementwise/elementwise.h"
#include "kernels/linear/cublaslt.h"
#include "kernels/linear/linear_impl.h"
#include "kernels/linear/linear_products.h"
#include "kernels/linear/native_products.cuh"
#include "kernels/linear/products.cuh"
#include "kernels/linear/sm90/config.cuh"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

constexpr int kNativeSlot = 0;  // of device_scratch: x of the native products

}  // namespace

void products_exact(KernelContext& context, DType dtype, const Products& p, int64_t rows,
                    int64_t m) {
  switch (dtype) {
    case DType::kF32:
      return products_exact_f32(context, p, rows, m);
    case DType::kF16:
      return products_exact_f16(context, p, rows, m);
    case DType::kBF16:
      return products_exact_bf16(context, p, rows, m);
    case DType::kF8E4M3:
      return products_exact_f8(context, p, rows, m);
    case DType::kI8:
      return products_exact_i8(context, p, rows, m);
    case DType::kI4:
      return products_exact_i4(context, p, rows, m);
    default:
      throw UsageError("[linear] weight: dtype " + std::string(dtype_name(dtype)));
  }
}

namespace {

int64_t padded(int64_t cols) { return (cols + kFp8Block - 1) / kFp8Block * kFp8Block; }

int64_t round_up(int64_t bytes) { return (bytes + 255) / 256 * 256; }

bool same_input(const LinearArgs& a, const LinearArgs& b) {
  return a.x == b.x && a.x_stride == b.x_stride && a.m == b.m && a.w.cols == b.w.cols;
}

#ifdef TAMIS_SM90
constexpr bool kSm90 = true;
#else
constexpr bool kSm90 = false;  // this build has no code for capability 9.0
#endif

// Whether Hopper's kernel, whose tiles have 256 rows of W, finds work for the GPU in these
// products; with little of it the portable tiles are faster.
bool fills_hopper(std::span<const LinearArgs> args, int64_t multiprocessors) {
  constexpr int64_t kRows = sm90::kRows * sm90::kCluster, kXRows = 64;
  int64_t m = 0, tiles = 0;
  for (const LinearArgs& a : args) {
    m = std::max(m, a.m);
    tiles += (a.w.rows + kRows - 1) / kRows * ((a.m + kXRows - 1) / kXRows);
  }
  return m > kXRows && tiles >= multiprocessors / 3;
}

// Whether products that cuBLASLt takes go to it. The others (a few rows, experts, odd shapes) run
// as they do without it.
bool wants_cublaslt(const KernelContext& context) {
  return context.allowed("linear_tiles", "cuda_cublaslt") &&
         !context.allowed("linear_tiles", "cuda");
}

// Which kernel runs `count` products, the largest of m rows of x, by the layout it reads. For more
// than a few rows force("linear_tiles", "cuda" or "cuda_sm90") decides.
XLayout layout_for(KernelContext& context, int64_t m, int64_t count, bool fills) {
  if (m <= kMostFewRows) return XLayout::kRows;
  const bool able = kSm90 && context.device()->info().sm == 90 && count <= sm90::kMostProducts &&
                    (context.allowed("linear_tiles", "cuda_sm90") || wants_cublaslt(context));
  const bool portable = context.allowed("linear_tiles", "cuda") || wants_cublaslt(context);
  if (!able && !portable) throw_no_implementation(context, "linear_tiles");
  const bool hopper = able && (fills || !portable);
  context.note("linear_tiles", hopper ? "cuda_sm90" : "cuda");
  return hopper ? XLayout::kAtoms : XLayout::kMmaOrder;
}

void products_native(KernelContext& context, const NativeProducts& p, XLayout layout, bool fp8,
                     int64_t rows, int64_t m) {
  if constexpr (kSm90) {
    if (layout == XLayout::kAtoms) {
      return fp8 ? products_sm90_f8(context, p) : products_sm90_bf16(context, p);
    }
  }
  fp8 ? products_native_f8(context, p, rows, m) : products_native_bf16(context, p, rows, m);
}

// Device memory for x of `m` rows by `width` columns, prepared.
struct XSpace {
  int64_t x_bytes, scale_bytes;
  XSpace(int64_t m, int64_t width, int64_t groups)
      : x_bytes(round_up(sm90::atom_rows(m, groups) * width * 2)),
        scale_bytes(round_up(sm90::atom_rows(m, groups) * (width / kFp8Block) * 4)) {}
  int64_t bytes() const { return x_bytes + scale_bytes; }
  PreparedX at(std::byte* space, bool fp8) const {
    return {reinterpret_cast<uint16_t*>(space),
            fp8 ? reinterpret_cast<float*>(space + x_bytes) : nullptr};
  }
};

void run_cublaslt(KernelContext& context, const LinearArgs& a, bool fp8, bool ue8m0,
                  bool round_bf16) {
  const int64_t x_stride = padded(a.w.cols);
  const XSpace needs(a.m, x_stride, 0);
  const PreparedX x =
      needs.at(static_cast<std::byte*>(device_scratch(context, kNativeSlot, needs.bytes())), fp8);
  prepare_rows(context, a, ue8m0, fp8 ? XLayout::kCodes : XLayout::kRows, x);
  product_cublaslt(context, a, fp8, x, x_stride);
  if (round_bf16) round_rows(context, {a.y, a.m, a.w.rows, a.y_stride});
  context.note("linear_tiles", "cuda_cublaslt");
}

// Products with x prepared; an x that several share is prepared once.
void run_prepared(KernelContext& context, std::span<const LinearArgs> args, bool fp8, bool ue8m0,
                  bool round_bf16) {
  int64_t bytes = 0, rows = 0, m = 0;
  for (const LinearArgs& a : args) {
    rows = std::max(rows, a.w.rows);
    m = std::max(m, a.m);
    bytes += XSpace(a.m, padded(a.w.cols), 0).bytes();
  }
  auto* space = static_cast<std::byte*>(device_scratch(context, kNativeSlot, bytes));
  const XLayout layout = layout_for(context, m, static_cast<int64_t>(args.size()),
                                    fills_hopper(args, context.device()->info().multiprocessors));
  NativeProducts p;
  p.round_bf16 = round_bf16;
  for (size_t i = 0; i < args.size(); ++i) {
    const LinearArgs& a = args[i];
    NativeProduct& product = p.list[p.count++];
    product = {nullptr, nullptr, padded(a.w.cols), a.m, a.w, a.y, a.y_stride};
    for (size_t j = 0; j < i && product.x == nullptr; ++j) {
      if (!same_input(a, args[j])) continue;
      product.x = p.list[j].x;
      product.x_scales = p.list[j].x_scales;
    }
    if (product.x == nullptr) {
      const XSpace needs(a.m, product.x_stride, 0);
      const PreparedX x = needs.at(space, fp8);
      space += needs.bytes();
      prepare_rows(context, a, ue8m0, layout, x);
      product.x = x.x;
      product.x_scales = x.scales;
    }
  }
  products_native(context, p, layout, fp8, rows, m);
}

void run_native(KernelContext& context, std::span<const LinearArgs> args, bool fp8, bool ue8m0,
                bool round_bf16) {
  if (!wants_cublaslt(context)) return run_prepared(context, args, fp8, ue8m0, round_bf16);
  LinearArgs others[Products::kMax];
  size_t count = 0;
  for (LinearArgs a : args) {
    const int64_t taken =
        a.m > kMostFewRows ? cublaslt_rows(a, fp8, context.device()->info().sm) : 0;
    if (taken > 0) {
      LinearArgs first = a;
      first.m = taken;
      run_cublaslt(context, first, fp8, ue8m0, round_bf16);
      a.x += taken * a.x_stride;
      a.y += taken * a.y_stride;
      a.m -= taken;
    }
    if (a.m > 0) others[count++] = a;
  }
  if (count > 0) run_prepared(context, {others, count}, fp8, ue8m0, round_bf16);
}

void run_exact(KernelContext& context, std::span<const LinearArgs> args) {
  Products p;
  int64_t rows = 0, m = 0;
  for (const LinearArgs& a : args) {
    p.list[p.count++] = a;
    rows = std::max(rows, a.w.rows);
    m = std::max(m, a.m);
  }
  products_exact(context, args[0].w.dtype, p, rows, m);
}

static_assert(Products::kMax == NativeProducts::kMax);

// Products of one dtype go into one launch, up to Products::kMax of them.
template <typename Run>
void in_batches(std::span<const LinearArgs> args, DType dtype, Run run) {
  LinearArgs batch[Products::kMax];
  size_t count = 0;
  for (const LinearArgs& a : args) {
    if (a.w.dtype != dtype || a.m == 0 || a.w.rows == 0) continue;
    batch[count++] = a;
    if (count < Products::kMax) continue;
    run(std::span<const LinearArgs>(batch, count));
    count = 0;
  }
  if (count > 0) run(std::span<const LinearArgs>(batch, count));
}

constexpr DType kFormats[] = {DType::kF32,    DType::kF16, DType::kBF16,
                              DType::kF8E4M3, DType::kI8,  DType::kI4};

}  // namespace

void linears_cuda(KernelContext& context, const std::span<const LinearArgs>& args) {
  for (const DType dtype : kFormats) {
    in_batches(args, dtype, [&](std::span<const LinearArgs> b) { run_exact(context, b); });
  }
}

void linears_native_cuda(KernelContext& context, std::span<const LinearArgs> args, bool ue8m0) {
  for (const DType dtype : kFormats) {
    in_batches(args, dtype, [&](std::span<const LinearArgs> batch) {
      const bool fp8 = dtype == DType::kF8E4M3;
      if (fp8 || dtype == DType::kBF16) return run_native(context, batch, fp8, ue8m0, true);
      run_exact(context, batch);
      for (const LinearArgs& a : batch) round_rows(context, {a.y, a.m, a.w.rows, a.y_stride});
    });
  }
}

void linear_fp8_cuda(KernelContext& context, const LinearFp8Args& a) {
  if (a.base.m == 0 || a.base.w.rows == 0) return;
  run_native(context, {&a.base, 1}, true, a.ue8m0, false);
}

void grouped_products_exact(KernelContext& context, std::span<const GroupedProduct> products,
                            const int64_t* offsets, int64_t groups, int64_t m,
                            std::span<const LinearArgs> beside) {
  Products p;
  p.groups = static_cast<int>(groups);
  p.offsets = offsets;
  int64_t rows = 0, each = (m + groups - 1) / groups;
  for (const GroupedProduct& g : products) {
    const Weight& w = g.weights[0];
    p.weights[p.grouped] = g.device_weights;
    p.list[p.grouped++] = {g.x, g.x_stride, m, w, g.y, g.y_stride};
    rows = std::max(rows, w.rows);
  }
  p.count = p.grouped * p.groups;
  int listed = p.grouped;
  for (const LinearArgs& a : beside) {
    p.list[listed++] = a;
    ++p.count;
    rows = std::max(rows, a.w.rows);
    each = std::max(each, a.m);
  }
  products_exact(context, products[0].weights[0].dtype, p, rows, each);
}

void grouped_product_cuda(KernelContext& context, const GroupedProductCuda& a) {
  const LinearArgs& all = a.all;
  if (all.m == 0 || a.groups == 0 || all.w.rows == 0) return;
  const int64_t m = (all.m + a.groups - 1) / a.groups;
  const bool fp8 = all.w.dtype == DType::kF8E4M3;
  if (!fp8 && all.w.dtype != DType::kBF16) {
    const GroupedProduct one{all.x, all.x_stride, {&all.w, 1}, a.weights, all.y, all.y_stride};
    grouped_products_exact(context, {&one, 1}, a.offsets, a.groups, all.m, {});
    return round_rows(context, {all.y, all.m, all.w.rows, all.y_stride});
  }
  const XSpace needs(all.m, padded(all.w.cols), a.groups);
  const PreparedX x =
      needs.at(static_cast<std::byte*>(device_scratch(context, kNativeSlot, needs.bytes())), fp8);
  const XLayout layout = layout_for(context, m, a.groups, true);
  if (layout == XLayout::kAtoms) {
    prepare_rows(context, all, a.ue8m0, layout, x, a.offsets, a.groups);
  } else {
    prepare_rows(context, all, a.ue8m0, layout, x);
  }
  NativeProducts p;
  p.list[0] = {x.x, x.scales, padded(all.w.cols), all.m, all.w, all.y, all.y_stride};
  p.count = static_cast<int>(a.groups);
  p.weights = a.weights;
  p.offsets = a.offsets;
  p.round_bf16 = true;
  products_native(context, p, layout, fp8, all.w.rows, m);
}

}  // namespace tamis
