#include "kernels/elementwise/elementwise.h"

#include <algorithm>
#include <numeric>

#include "kernels/elementwise/elementwise_impl.h"
#include "kernels/quantize_fp8/quantize_fp8.h"
#include "kernels/weight.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

void fill_reference(KernelContext&, const FillArgs& a) { std::fill_n(a.x, a.n, a.value); }

void round_rows_reference(KernelContext&, const RoundRowsArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    float* x = a.x + r * a.stride;
    for (int64_t i = 0; i < a.width; ++i) x[i] = round_to_bf16(x[i]);
  }
}

void gather_rows_reference(KernelContext&, const GatherRowsArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    std::copy_n(a.x + a.row[r] * a.width, a.width, a.y + r * a.width);
  }
}

void mark(int32_t& failed, int32_t value) {
  if (failed < 0) failed = value;
}

void check_finite_reference(KernelContext&, const CheckFiniteArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    // 0 * x is 0 for every finite x, NaN for the rest.
    float sum = 0;
    for (int64_t i = 0; i < a.width; ++i) sum += 0.0F * a.x[r * a.width + i];
    const int64_t token = a.token == nullptr ? r : a.token[r];
    if (sum != 0.0F) mark(a.failed[a.sequence[token]], a.mark);
  }
}

void check_flags_reference(KernelContext&, const CheckFlagsArgs& a) {
  for (int64_t t = 0; t < a.tokens; ++t) {
    if (a.flags[t] != 0) mark(a.failed[a.sequence[t]], a.mark);
  }
}

void quantise_query(float* q, int64_t dim, bool ue8m0, float* weight) {
  uint8_t bytes[8192];
  float scale[64];
  act_quant_row(q, dim, ue8m0, bytes, scale);
  for (int64_t d = 0; d < dim; ++d) {
    q[d] = e4m3_to_float(bytes[d]) * (scale[d / kFp8Block] / scale[0]);
  }
  *weight *= scale[0];
}

void index_query_reference(KernelContext&, const IndexQueryArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    float& w = a.w[r];
    w *= a.head_scale;
    if (a.native) {
      w = round_to_bf16(w);
      quantise_query(a.q + r * a.dim, a.dim, a.ue8m0, &w);
    }
    w *= a.dim_scale;
  }
}

void select_window_reference(KernelContext&, const SelectWindowArgs& a) {
  for (int64_t t = 0; t < a.tokens; ++t) {
    const int64_t end = a.position[t] + 1, begin = std::max<int64_t>(end - a.k, 0);
    int32_t* row = a.indices + t * a.k;
    std::iota(row, row + (end - begin), static_cast<int32_t>(begin));
    std::fill(row + (end - begin), row + a.k, -1);
  }
}

template <typename Args>
bool any(const Args&) {
  return true;
}

template <typename Args>
using List = Implementation<Args>[2];

constexpr List<FillArgs> kFill = {{"cuda", any, fill_cuda}, {"reference", any, fill_reference}};
constexpr List<RoundRowsArgs> kRound = {{"cuda", any, round_rows_cuda},
                                        {"reference", any, round_rows_reference}};
constexpr List<GatherRowsArgs> kGather = {{"cuda", any, gather_rows_cuda},
                                          {"reference", any, gather_rows_reference}};
constexpr List<CheckFiniteArgs> kFinite = {{"cuda", any, check_finite_cuda},
                                           {"reference", any, check_finite_reference}};
constexpr List<CheckFlagsArgs> kFlags = {{"cuda", any, check_flags_cuda},
                                         {"reference", any, check_flags_reference}};
constexpr List<IndexQueryArgs> kQuery = {{"cuda", any, index_query_cuda},
                                         {"reference", any, index_query_reference}};
constexpr List<SelectWindowArgs> kWindow = {{"cuda", any, select_window_cuda},
                                            {"reference", any, select_window_reference}};

}  // namespace

void fill(KernelContext& context, const FillArgs& args) {
  dispatch<FillArgs>(context, "fill", kFill, args);
}
void round_rows(KernelContext& context, const RoundRowsArgs& args) {
  dispatch<RoundRowsArgs>(context, "round_rows", kRound, args);
}
void gather_rows(KernelContext& context, const GatherRowsArgs& args) {
  dispatch<GatherRowsArgs>(context, "gather_rows", kGather, args);
}
void check_finite(KernelContext& context, const CheckFiniteArgs& args) {
  dispatch<CheckFiniteArgs>(context, "check_finite", kFinite, args);
}
void check_flags(KernelContext& context, const CheckFlagsArgs& args) {
  dispatch<CheckFlagsArgs>(context, "check_flags", kFlags, args);
}
void index_query(KernelContext& context, const IndexQueryArgs& args) {
  dispatch<IndexQueryArgs>(context, "index_query", kQuery, args);
}
void select_window(KernelContext& context, const SelectWindowArgs& args) {
  dispatch<SelectWindowArgs>(context, "select_window", kWindow, args);
}

}  // namespace tamis
