// The CUDA implementations of array_ops.
#pragma once

#include "kernels/array_ops/array_ops.h"

namespace tamis {

void add_values_cuda(KernelContext& context, const float* x, int64_t n, float* y);
void scale_values_cuda(KernelContext& context, float* x, int64_t n, float factor);
void round_values_cuda(KernelContext& context, const float* x, int64_t n, uint16_t* y);
void copy_columns_cuda(KernelContext& context, const CopyColumnsArgs<float>& args);
void pick_rows_cuda(KernelContext& context, const PickRowsArgs<float>& args);
void return_rows_cuda(KernelContext& context, const ReturnRowsArgs<float>& args);
void add_experts_cuda(KernelContext& context, const AddExpertsArgs<float>& args);
void largest_columns_cuda(KernelContext& context, const LargestColumnsArgs<float>& args);

}  // namespace tamis
