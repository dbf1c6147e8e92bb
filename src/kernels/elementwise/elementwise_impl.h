// The CUDA implementations of the elementwise operations.
#pragma once

#include "kernels/elementwise/elementwise.h"

namespace tamis {

void fill_cuda(KernelContext& context, const FillArgs& args);
void round_rows_cuda(KernelContext& context, const RoundRowsArgs& args);
void gather_rows_cuda(KernelContext& context, const GatherRowsArgs& args);
void check_finite_cuda(KernelContext& context, const CheckFiniteArgs& args);
void check_flags_cuda(KernelContext& context, const CheckFlagsArgs& args);
void index_query_cuda(KernelContext& context, const IndexQueryArgs& args);
void select_window_cuda(KernelContext& context, const SelectWindowArgs& args);

}  // namespace tamis
