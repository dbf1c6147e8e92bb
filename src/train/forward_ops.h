// The forward operations of training. float runs the operations that also serve a model
// (kernels/ops.h), so training and inference give the same bits; double is plain loops, for
// gradients that finite differences can check.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/context.h"
#include "kernels/matmul/matmul.h"
#include "kernels/mla_dense/mla_dense_backward.h"
#include "kernels/mla_sparse/mla_sparse_backward.h"
#include "kernels/rope/rope.h"
#include "model/config.h"

namespace tamis {

// y [m, rows] = x [m, cols] W^T, W [rows, cols].
template <typename T>
struct Product {
  const T* x = nullptr;
  int64_t x_stride = 0, m = 0;
  const T* w = nullptr;
  int64_t rows = 0, cols = 0;
  T* y = nullptr;                    // [m, rows], rows side by side
  const uint16_t* x_bf16 = nullptr;  // x rounded to bf16, by x_stride: matmul.h, a_bf16
  // As c_bf16, turned and add of matmul.h, where reads_bf16() holds.
  uint16_t* y_bf16 = nullptr;
  TurnedColumns<T> turned = {};
  const T* add = nullptr;            // [m, rows]
  const uint16_t* w_bf16 = nullptr;  // w rounded, or null
};

// The rows of a layer's experts: expert e has offsets[e] .. offsets[e+1] of `all`.
struct ExpertRows {
  const int64_t* offsets = nullptr;  // [experts + 1]
  int64_t experts = 0, all = 0;
};

// y = x W_e^T on the rows of every expert e, W_e [rows, cols] at w + e * w_stride.
template <typename T>
struct ExpertProduct {
  const T* x = nullptr;  // [all, cols]
  const T* w = nullptr;
  int64_t w_stride = 0, rows = 0, cols = 0;
  T* y = nullptr;  // [all, rows]
  const uint16_t *x_bf16 = nullptr, *w_bf16 = nullptr;
};

template <typename T>
struct ForwardOps {
  static void products(KernelContext& context, std::span<const Product<T>> list);
  // x [rows, width], x_stride apart -> y [rows, width] unless null, and rounded if y_bf16 is not.
  // Here and below bf16 is for reads_bf16() of matmul.h alone; double has none.
  static void rms_norm(KernelContext& context, const T* x, int64_t x_stride, const T* w,
                       int64_t rows, int64_t width, T eps, T* y, uint16_t* y_bf16 = nullptr);
  static void layer_norm(KernelContext& context, const T* x, const T* w, const T* b, int64_t rows,
                         int64_t width, T eps, T* y);
  // y, or instead of it y_bf16.
  static void swiglu(KernelContext& context, const T* gate, const T* up, int64_t count, T* y,
                     uint16_t* y_bf16 = nullptr);
  static void embedding(KernelContext& context, const T* table, const ModelConfig& config,
                        const int32_t* ids, int64_t tokens, T* y);
  // ids, weights [tokens, experts_per_token]
  static void moe_gate(KernelContext& context, const ModelConfig& config, const T* logits,
                       const T* bias, int64_t tokens, int32_t* ids, T* weights);
  // x [tokens, hidden] by expert, as moe_permute: rows, or instead of them rows_bf16.
  static void permute(KernelContext& context, const ModelConfig& config, const int32_t* ids,
                      const T* x, int64_t tokens, int32_t* row_of, int64_t* offsets, T* rows,
                      uint16_t* rows_bf16 = nullptr);
  static void expert_products(KernelContext& context, const ExpertRows& rows,
                              std::span<const ExpertProduct<T>> list);
  // Attention over everything earlier in each of the sequences that begin at `begins`, or over what
  // is selected of it -> out [tokens, heads, v_dim], and log_sum as mla_dense_train has it.
  static void attend_dense(KernelContext& context, const MlaSequence<T>& in,
                           std::span<const int64_t> begins, const SelectionMask& selected, T* out,
                           T* log_sum);
  // The indexer's selection: q [tokens, heads, dim], w [tokens, heads], keys [tokens, dim] ->
  // indices [tokens, topk], rows of keys. One sequence; on CUDA also several.
  struct SelectArgs {
    const T *q, *w, *keys;
    int64_t tokens, heads, dim, topk;
    TokenSequences sequences = {};
  };
  static void select(KernelContext& context, const SelectArgs& args, int32_t* indices);
  // The same as bits, mask_selection.h; indices are memory to work in.
  struct MaskTo {
    uint64_t* bits;
    int64_t stride, words;
  };
  static void select_mask(KernelContext& context, const SelectArgs& args, int32_t* indices,
                          const MaskTo& mask);
  // Attention over in.indices -> out [tokens, heads, kv_lora]; on CUDA also log_sum and target of
  // mla_sparse_train.h, if not null.
  static void attend_sparse(KernelContext& context, const MlaSparseBackwardArgs<T>& in, T* out,
                            T* log_sum, T* target);
};

}  // namespace tamis
