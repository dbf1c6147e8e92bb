// What the parts of a layer share during one pass. Internal to train/.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "comm/group.h"
#include "kernels/buffer.h"
#include "kernels/memory.h"
#include "kernels/train_ops.h"
#include "train/forward_ops.h"
#include "train/model.h"

namespace tamis {

// What attention expands from a layer's latents; recomputed for the backward pass on demand.
template <typename T>
struct ExpandedState {
  Buffer<T> q_lora, q, c_kv, k_pe;          // q and k_pe after RoPE
  Buffer<uint16_t> q_lora_bf16, c_kv_bf16;  // the same rounded, where products want that
  Buffer<T> kv;                             // dense and masked: keys and values of every head
  Buffer<uint16_t> q_bf16, kv_bf16;         // in their place, see rounds_attention()
};

// Where the rows of each rank of a group of experts lie among those that this rank's experts work
// on: rank after rank, and expert after expert within one.
struct SourceRows {
  std::vector<int64_t> first;                 // [ranks + 1]
  std::vector<std::vector<int64_t>> offsets;  // [ranks][own experts + 1], from `first` on
};

template <typename T>
struct LayerState : ExpandedState<T> {
  Buffer<T> x;  // [tokens, hidden]: the residual stream that enters the layer
  // Attention, names of the paper.
  Buffer<T> q_a, kv_a;
  Buffer<T> o_latent;                  // gathered, unless recomputed
  Buffer<int32_t> indices;             // gathered: [tokens, topk], see for_each_selection
  Buffer<uint64_t> selected;           // masked: the bits of a SelectionMask
  Buffer<T> o;                         // [tokens, heads, v_head]
  Buffer<uint16_t> o_bf16, k_pe_bf16;  // in the place of o and k_pe, see rounds_attention()
  Buffer<T> log_sum;  // expanded: [heads, tokens], as mla_dense_train has it; gathered: transposed
  Buffer<T> x_mid;    // the stream between the half-blocks
  // FFN: of the dense MLP or the shared expert, then of the routed ones.
  Buffer<T> gate, up;
  Buffer<T> router, expert_weights, expert_rows, expert_gate, expert_up, expert_down;
  Buffer<uint16_t> expert_rows_bf16;  // in the place of expert_rows, see rounds()
  // What attention's norm and SwiGLU of the MLP and of the experts wrote, see keeps_rounded().
  Buffer<uint16_t> normed_bf16, act_bf16, expert_act_bf16;
  Buffer<int32_t> expert_ids, expert_row_of;
  SourceRows sources;  // with a group of experts
};

// A factor of an FP8 product, rounded; see linear_layers.h.
template <typename T>
struct Fp8Factor {
  Buffer<T> values;
  Buffer<uint16_t> bf16;  // in their place, see rounds()
};

// Reused by every layer in turn.
template <typename T>
struct Workspace {
  Buffer<T> normed, dnormed, dx;  // normed: of the norm at work, the last one too
  Buffer<int32_t> indices;        // masked: [tokens, topk]
  Buffer<T> d_o, dq, dkv, dc_kv, dk_pe, dkv_a, dq_a, dq_lora;
  Buffer<T> q_latent, o_latent, dq_latent, do_latent;  // of a block, see sparse_attention.h
  Buffer<T> all_q, all_kv;                             // of every head, with a tensor group
  Buffer<T> index_q, index_k_raw, index_k, index_w, d_index_q, d_index_k, d_index_w, target;
  Buffer<T> act, dact, dgate, dup, drouter, dexpert_weights, drows, ddown, exchanged;
  Buffer<T> final_x, logits;
  // What only feeds products is kept in bf16 where they round it; see rounds().
  Buffer<uint16_t> normed_bf16, act_bf16, dgate_up_bf16, ddown_bf16, dlogits_bf16, d_o_bf16,
      dq_bf16, dkv_bf16, dq_a_bf16, dkv_a_bf16;
  Buffer<uint16_t> dx_bf16;  // of the gradient of the stream at work, besides it
  Fp8Factor<T> fp8_first, fp8_second, fp8_down;  // of the product at work
};

// cos and sin of positions 0, 1, .., made once for the frequencies of a configuration.
template <typename T>
struct RopeRows {
  std::vector<float> freq;
  float scaling = 0;
  int64_t count = 0;
  Buffer<T> cos, sin;  // [count, rope / 2]
};

template <typename T>
struct TrainState {
  std::vector<LayerState<T>> layers;
  ExpandedState<T> expanded;  // of the layer at work, if they are recomputed
  Workspace<T> work;
  Buffer<T> cos, sin;                      // [tokens, rope / 2]
  Buffer<int32_t> ids, targets, position;  // of the batch; positions count within a sequence
  RopeRows<T> rope;
  Buffer<uint16_t> w_bf16;  // see Pass
  // What the pass tells, read when all of it is on its way. Rows of layers count that of
  // multi-token prediction.
  Buffer<double> losses;           // [tokens]
  Buffer<int32_t> likeliest;       // [tokens]: evaluate
  Buffer<double> kl;               // [layers, tokens]
  Buffer<double> balance;          // [layers, sequences]
  Buffer<int64_t> expert_offsets;  // [layers, experts + 1]
};

// The module of multi-token prediction (DeepSeek-V3 report, 2.2): token i of a sequence, with the
// embedding of token i + 1, predicts token i + 2. Its rows are the tokens that have a next one.
template <typename T>
struct MtpState {
  MicroBatch batch;             // ids: of the next tokens
  std::vector<int32_t> row_of;  // [rows]: the token of the model's batch
  Buffer<int32_t> rows;         // the same, where the operations work
  TrainState<T> state;          // of its layer, the last of state.layers
  Buffer<T> e, h, joined;       // [rows, hidden] before their norms; [rows, 2 hidden] after
  Buffer<T> djoined, half, back;
};

// The ranks that compute with this one; null: none.
struct PassGroups {
  Group *experts = nullptr, *tensor = nullptr;
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
  PassGroups groups;
  const uint16_t* w_bf16 = nullptr;  // all weights rounded, where products want that

  int64_t tokens() const { return batch.tokens(); }
  bool sparse() const { return objective.attention == TrainAttention::kSparse; }
  bool masked() const { return sparse() && objective.masked; }
  bool gathered() const { return sparse() && !objective.masked; }
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

// Runs body(begin, count) for each sequence.
template <typename T, typename Body>
void for_each_sequence(const Pass<T>& p, const Body& body) {
  for (size_t i = 0; i + 1 < p.batch.begins.size(); ++i) {
    body(p.batch.begins[i], p.batch.begins[i + 1] - p.batch.begins[i]);
  }
}

template <typename T>
int64_t longest_sequence(const Pass<T>& p) {
  int64_t longest = 0;
  for_each_sequence(p, [&](int64_t, int64_t count) { longest = std::max(longest, count); });
  return longest;
}

// n values of a buffer; what it held is lost.
template <typename T, typename V>
V* sized(Pass<T>& p, Buffer<V>& buffer, int64_t n) {
  return buffer.resize(p.kernels, n);
}

template <typename T, typename V>
V* zeroed(Pass<T>& p, Buffer<V>& buffer, int64_t n) {
  V* values = sized(p, buffer, n);
  zero(p.kernels, values, n * static_cast<int64_t>(sizeof(V)));
  return values;
}

// A copy of host values where the operations work.
template <typename T, typename V>
V* placed(Pass<T>& p, Buffer<V>& buffer, const std::vector<V>& values) {
  const auto n = static_cast<int64_t>(values.size());
  V* to = sized(p, buffer, n);
  put(p.kernels, to, values.data(), n * static_cast<int64_t>(sizeof(V)));
  return to;
}

// `n` values from there.
template <typename T, typename V>
std::vector<V> fetched(Pass<T>& p, const V* from, int64_t n) {
  std::vector<V> values(static_cast<size_t>(n));
  get(p.kernels, values.data(), from, n * static_cast<int64_t>(sizeof(V)));
  return values;
}

// Whether arrays [rows, width] for each of `widths` feed products that want them in bf16.
template <typename T>
bool rounds(const Pass<T>& p, int64_t rows, std::initializer_list<int64_t> widths) {
  return reads_bf16(p.kernels, rows, widths);
}

// Whether what norms and SwiGLU round for products is kept for the backward pass, which else makes
// it again.
template <typename T>
bool keeps_rounded(const Pass<T>& p) {
  return p.objective.train_model && !p.objective.recompute;
}

// Weights of the table rounded, or null.
template <typename T>
const uint16_t* rounded_weights(const Pass<T>& p, const T* w) {
  return p.w_bf16 == nullptr ? nullptr : p.w_bf16 + (w - p.w);
}

// n values of a buffer if `wanted`, else null.
template <typename T, typename V>
V* sized_if(bool wanted, Pass<T>& p, Buffer<V>& buffer, int64_t n) {
  return wanted ? sized(p, buffer, n) : nullptr;
}

// Whether products want the gradient of the stream rounded. FP8 rounds the float32 one.
template <typename T>
bool wants_dx_bf16(const Pass<T>& p) {
  return !p.objective.fp8 && rounds(p, p.tokens(), {p.config.hidden_size});
}
// Where it goes then; else null.
template <typename T>
uint16_t* sized_dx_bf16(Pass<T>& p) {
  const int64_t n = p.tokens(), d = p.config.hidden_size;
  return sized_if(wants_dx_bf16(p), p, p.state.work.dx_bf16, n * d);
}
// What the last operation that wrote the gradient of the stream put there.
template <typename T>
const uint16_t* dx_bf16(const Pass<T>& p) {
  return wants_dx_bf16(p) ? p.state.work.dx_bf16.data() : nullptr;
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
  const uint16_t *dy_bf16 = nullptr, *x_bf16 = nullptr;  // rounded, by the same strides
  uint16_t* dx_bf16 = nullptr;                           // dx rounded, in its place
  const uint16_t* w_bf16 = nullptr;                      // w rounded, or null
};

// Products whose dx and dw do not overlap.
template <typename T>
void products_backward(KernelContext& context, std::span<const ProductBackward<T>> list) {
  std::vector<MatmulArgs<T>> args;
  for (const ProductBackward<T>& p : list) {
    if (p.dx != nullptr || p.dx_bf16 != nullptr) {
      args.push_back({p.dy, p.dy_stride, 1, p.w, p.cols, 1, p.dx, p.cols, p.m, p.cols, p.rows,
                      p.add_dx, p.dy_bf16, p.w_bf16, p.dx_bf16});
    }
    args.push_back({p.dy, 1, p.dy_stride, p.x, p.x_stride, 1, p.dw, p.cols, p.rows, p.cols, p.m,
                    true, p.dy_bf16, p.x_bf16});
  }
  matmuls<T>(context, args);
}

template <typename T>
void products_backward(KernelContext& context, const ProductBackward<T>& p) {
  products_backward<T>(context, std::span<const ProductBackward<T>>(&p, 1));
}

// Runs the module over the model's normed output (work.normed of p) and, if the model is
// trained, goes back: d_normed [tokens, hidden] += its gradient.
template <typename T>
void mtp_forward_backward(Pass<T>& p, MtpState<T>& mtp, T* d_normed);
// The pass over the module's batch within that of the model.
template <typename T>
Pass<T> mtp_pass(Pass<T>& p, MtpState<T>& mtp) {
  return {p.kernels,   p.config,  p.table,  p.w,      p.grad,  mtp.batch,
          p.objective, mtp.state, p.result, p.groups, p.w_bf16};
}

// Puts p.batch into p.state: ids, targets, and cos and sin of positions, each sequence from 0; and
// makes room for what the pass tells.
template <typename T>
void place_batch(Pass<T>& p);

// Reads what the layers [first, last) told into p.result.
template <typename T>
void collect_layers(Pass<T>& p, int64_t first, int64_t last);

// The loss of p.batch from the last layer's output final_x, by blocks of tokens, into
// p.state.losses: the gradient of its norm into d_normed, of the head's matrix added.
template <typename T>
void head_forward_backward(Pass<T>& p, int64_t norm, double scale, T* d_normed);
// The sum of p.state.losses.
template <typename T>
double sum_of_losses(Pass<T>& p);

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
