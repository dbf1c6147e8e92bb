// The instantiations of linear_exact.cuh and linear_native.cuh, one .cu file each.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"
#include "kernels/grouped_linear/grouped_linear.h"
#include "kernels/linear/linear.h"

namespace tamis {

struct Products;
struct NativeProducts;

void products_exact_f32(KernelContext& context, const Products& p, int64_t rows, int64_t m);
void products_exact_f16(KernelContext& context, const Products& p, int64_t rows, int64_t m);
void products_exact_bf16(KernelContext& context, const Products& p, int64_t rows, int64_t m);
void products_exact_f8(KernelContext& context, const Products& p, int64_t rows, int64_t m);
void products_exact_i8(KernelContext& context, const Products& p, int64_t rows, int64_t m);
void products_exact_i4(KernelContext& context, const Products& p, int64_t rows, int64_t m);

void products_native_bf16(KernelContext& context, const NativeProducts& p, int64_t rows, int64_t m);
void products_native_f8(KernelContext& context, const NativeProducts& p, int64_t rows, int64_t m);

// The same on Hopper's own instructions (linear/sm90): x in atoms, any number of rows. In builds
// for sm_90 (TAMIS_SM90), for devices of capability 9.0.
void products_sm90_bf16(KernelContext& context, const NativeProducts& p);
void products_sm90_f8(KernelContext& context, const NativeProducts& p);

// How x of the native products lies, [m, cols padded to 128] of bf16, or with scales e4m3 values as
// f16. Scales are float [m, blocks of 128].
enum class XLayout {
  kRows,      // row after row
  kMmaOrder,  // the columns of each 64 in tile_kernel's order: 16t + 4s + 2h + e at 16s + 8h + 2t +
              // e
  kAtoms,     // in that order, 8 rows by 64 columns together as sm90/tile.cuh describes; scales
              // [blocks][rows]
  kCodes,     // row after row of e4m3 codes, a byte each; scales [blocks][m]. FP8 only
};
struct PreparedX {
  uint16_t* x;
  float* scales;  // null: bf16
};
// Groups: [groups + 1] on the device, for atoms, which never have rows of two groups.
void prepare_rows(KernelContext& context, const LinearArgs& a, bool ue8m0, XLayout layout,
                  const PreparedX& to, const int64_t* offsets = nullptr, int64_t groups = 0);

// The products of native precision: F8_E4M3 as linear_fp8, BF16 with x (of bf16 values) and W on
// tensor cores, others as linear; y rounded to bf16.
void linears_native_cuda(KernelContext& context, std::span<const LinearArgs> args, bool ue8m0);

// The most grouped products of one launch, and of all products in its list.
constexpr size_t kGroupedAtOnce = 2, kProductsAtOnce = 12;

// One launch of the kernels of `linear`: up to kGroupedAtOnce grouped products of m rows in all,
// and `beside` them others, all of one dtype.
void grouped_products_exact(KernelContext& context, std::span<const GroupedProduct> products,
                            const int64_t* offsets, int64_t groups, int64_t m,
                            std::span<const LinearArgs> beside);

// y[m] = W_g x[m] for the rows m = offsets[g] .. offsets[g+1) of group g, as linears_native_cuda.
struct GroupedProductCuda {
  LinearArgs all;  // every row of x and y; w stands for the shape and type of all weights
  const Weight* weights = nullptr;   // [groups], on the device
  const int64_t* offsets = nullptr;  // [groups + 1], on the device
  int64_t groups = 0;
  bool ue8m0 = false;
};
void grouped_product_cuda(KernelContext& context, const GroupedProductCuda& args);

// The one for weights of `dtype`, which every product of p has.
void products_exact(KernelContext& context, DType dtype, const Products& p, int64_t rows,
                    int64_t m);

}  // namespace tamis
