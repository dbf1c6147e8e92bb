// The routed experts of a layer: rows of x sorted by expert, each expert's rows times its own
// weights.
//
//   y[m, :] = W_g x[m, :]     for the rows m = offsets[g] .. offsets[g + 1) of group g
//
// Where a group begins is known to the device that sorted the rows and to nobody else: a back end
// reads `offsets` where it runs. Several products over the same rows (gate and up) and products of
// other rows (the shared expert, `beside`) run side by side. Numbers are those of linear; with
// native set, of linear_fp8 for weights in F8_E4M3, rounded to bf16; with int8 set, of linear_int8
// for weights in I8 and I4.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/linear/linear.h"

namespace tamis {

// One weight of each group; all have the same shape and type.
struct GroupedProduct {
  const float* x = nullptr;  // [rows, cols], rows x_stride apart; row 0 is row 0 of the sorted rows
  int64_t x_stride = 0;
  std::span<const Weight> weights;         // [groups], the descriptors on the host
  const Weight* device_weights = nullptr;  // the same descriptors where the back end runs: cuda
  float* y = nullptr;                      // [rows, weights[0].rows]
  int64_t y_stride = 0;
};

struct GroupedLinearArgs {
  std::span<const GroupedProduct> products;
  const int64_t* offsets = nullptr;  // [groups + 1], ascending; rows outside them are not written
  int64_t groups = 0;
  int64_t rows = 0;  // no offset is larger
  std::span<const LinearArgs> beside;
  bool native = false, ue8m0 = false;
  bool int8 = false;                        // CPU only
  std::vector<LinearArgs>* work = nullptr;  // room of the CPU's list; kept by the caller
};

void grouped_linear(KernelContext& context, const GroupedLinearArgs& args);

// Several products as a model of this precision computes them: linears; or linear_fp8 and linear
// rounded to bf16 (native); or linears_int8 and linears (int8, not on CUDA).
void projections(KernelContext& context, std::span<const LinearArgs> args, bool native, bool ue8m0,
                 bool int8 = false);

}  // namespace tamis
