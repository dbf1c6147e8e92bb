// What the parts of a layer share during one pass. Internal to train/.
#pragma once

#include <utility>
#include <vector>

#include "kernels/train_ops.h"
#include "train/forward_ops.h"
#include "train/model.h"

namespace tamis {

// What attention expands from a layer's latents; recomputed for the backward pass on demand.
template <typename T>
struct ExpandedState {
  std::vector<T> q_lora, q, c_kv, k_pe;  // q and k_pe after RoPE
  std::vector<T> kv;                     // dense: keys and values of every head
  std::vector<T> q_latent;               // sparse
};

template <typename T>
struct LayerState : ExpandedState<T> {
  std::vector<T> x;  // [tokens, hidden]: the residual stream that enters the layer
  // Attention, names of the paper.
  std::vector<T> q_a, kv_a;
  std::vector<T> o_latent;       // sparse
  std::vector<int32_t> indices;  // sparse: [tokens, topk], positions within the sequence
  std::vector<T> o;              // [tokens, heads, v_head]
  std::vector<T> x_mid;          // the stream between the half-blocks
  // FFN: of the dense MLP or the shared expert, then of the routed ones.
  std::vector<T> gate, up;
  std::vector<T> router, expert_weights, expert_rows, expert_gate, expert_up, expert_down;
  std::vector<int32_t> expert_ids, expert_row_of;
  std::vector<int64_t> expert_offsets;
};

// Reused by every layer in turn.
template <typename T>
struct Workspace {
  std::vector<T> normed, delta, dnormed, dx;
  std::vector<T> d_o, dq, dkv, dc_kv, dk_pe, dkv_a, dq_a, dq_lora, dq_latent, do_latent;
  std::vector<T> index_q, index_k_raw, index_k, index_w, d_index_q, d_index_k, d_index_w, target;
  std::vector<T> act, dact, dgate, dup, shared, drouter, dexpert_weights, drows, ddown;
  std::vector<T> final_x, final_normed, logits;
  std::vector<double> rows;
};

template <typename T>
struct TrainState {
  std::vector<LayerState<T>> layers;
  ExpandedState<T> expanded;  // of the layer at work, if they are recomputed
  Workspace<T> work;
  std::vector<T> cos, sin;  // [tokens, rope / 2]
};

// The module of multi-token prediction (DeepSeek-V3 report, 2.2): token i of a sequence, with the
// embedding of token i + 1, predicts token i + 2. Its rows are the tokens that have a next one.
template <typename T>
struct MtpState {
  MicroBatch batch;             // ids: of the next tokens
  std::vector<int64_t> row_of;  // [rows]: the token of the model's batch
  TrainState<T> state;          // of its layer, the last of state.layers
  std::vector<T> e, h, joined;  // [rows, hidden] before their norms; [rows, 2 hidden] after
};

template <typename T>
struct Pass {
  KernelContext& kernels;
  const ModelConfig& config;
  const ParameterTable& table;
  const T* w;
  T* grad;
  const MicroBatch& batch;
  const Objective& objective;
  TrainState<T>& state;
  StepResult& result;

  int64_t tokens() const { return batch.tokens(); }
  bool sparse() const { return objective.attention == TrainAttention::kSparse; }
  const LayerConfig& layer_config(int64_t l) const {
    return l < config.num_layers() ? config.layers[static_cast<size_t>(l)] : config.mtp_layer;
  }
  const LayerSlots& slots(int64_t layer) const {
    return table.layers()[static_cast<size_t>(layer)];
  }
  // Without a backward pass nothing of a layer is read again, and two states take turns.
  LayerState<T>& layer(int64_t l) const {
    return state.layers[static_cast<size_t>(objective.train_model ? l : l % 2)];
  }
  bool measures() const { return objective.measure_topk > 0; }
  // With recomputation the layers take turns with one state of what attention expands: called
  // before a layer uses it and after.
  void trade_expanded(int64_t l) const {
    if (objective.recompute) {
      std::swap(static_cast<ExpandedState<T>&>(layer(l)), state.expanded);
    }
  }
};

// n values of a buffer; what it held is lost.
template <typename T>
T* sized(std::vector<T>& buffer, int64_t n) {
  buffer.resize(static_cast<size_t>(n));
  return buffer.data();
}

template <typename T>
T* zeroed(std::vector<T>& buffer, int64_t n) {
  buffer.assign(static_cast<size_t>(n), T{0});
  return buffer.data();
}

// y = x W^T forward: dx = or += dy W, dw += dy^T x.
template <typename T>
struct ProductBackward {
  const T* dy = nullptr;  // [m, rows]
  int64_t dy_stride = 0;
  const T* x = nullptr;  // [m, cols]
  int64_t x_stride = 0, m = 0;
  const T* w = nullptr;  // [rows, cols]
  int64_t rows = 0, cols = 0;
  T* dx = nullptr;  // null: not wanted
  bool add_dx = false;
  T* dw = nullptr;
};

// Products whose dx and dw do not overlap.
template <typename T>
void products_backward(KernelContext& context, std::span<const ProductBackward<T>> list) {
  std::vector<MatmulArgs<T>> args;
  for (const ProductBackward<T>& p : list) {
    if (p.dx != nullptr) {
      args.push_back(
          {p.dy, p.dy_stride, 1, p.w, p.cols, 1, p.dx, p.cols, p.m, p.cols, p.rows, p.add_dx});
    }
    args.push_back(
        {p.dy, 1, p.dy_stride, p.x, p.x_stride, 1, p.dw, p.cols, p.rows, p.cols, p.m, true});
  }
  matmuls<T>(context, args);
}

template <typename T>
void products_backward(KernelContext& context, const ProductBackward<T>& p) {
  products_backward<T>(context, std::span<const ProductBackward<T>>(&p, 1));
}

// Runs the module over the model's normed output (work.final_normed of p) and, if the model is
// trained, goes back: d_normed [tokens, hidden] += its gradient.
template <typename T>
void mtp_forward_backward(Pass<T>& p, MtpState<T>& mtp, T* d_normed);

// cos and sin of p.state for the positions of p.batch, each sequence from 0.
template <typename T>
void position_tables(Pass<T>& p);

// The loss of p.batch from the last layer's output final_x, by blocks of tokens: the gradient of
// final_normed into d_normed, of the head's matrix added. Returns the sum of losses.
template <typename T>
double head_forward_backward(Pass<T>& p, int64_t norm, double scale, T* d_normed);

// Adds Attn(norm(x)) of layer l to x (x_mid of the state), and the indexer's gradients.
template <typename T>
void attention_forward(Pass<T>& p, int64_t l);
// dx [tokens, hidden]: in the gradient of x_mid, out that of x.
template <typename T>
void attention_backward(Pass<T>& p, int64_t l, T* dx);

// out [tokens, hidden] = x_mid + FFN(norm(x_mid)).
template <typename T>
void ffn_forward(Pass<T>& p, int64_t l, T* out);
// dx: in the gradient of the layer's output, out that of x_mid.
template <typename T>
void ffn_backward(Pass<T>& p, int64_t l, T* dx);

}  // namespace tamis
