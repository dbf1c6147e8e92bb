// mla_sparse in training on CUDA by blocks of tokens, as on CPUs: scores [heads, block, k] against
// gathered rows, their softmax, a product of each token, and the gradients of the gathered rows
// [block, k, kv_lora + rope], at most about 1 GiB, added back token by token.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/train_products.h"
#include "kernels/cuda/train_rows.h"
#include "kernels/mla_sparse/mla_sparse_backward_impl.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

using Args = MlaSparseBackwardArgs<float>;

constexpr int kP = 0, kRows = 2, kHeads = 3;  // slots of scratch memory; scatter_rows has 7

class Block {
 public:
  Block(KernelContext& context, const Args& args, int64_t begin, int64_t count)
      : context_(context), a_(args), begin_(begin), count_(count) {
    const int64_t floats = count * args.heads * args.k;
    p_ = static_cast<float*>(device_scratch(context, kP, 2 * floats * 4));
    ds_ = p_ + floats;  // made by one product of twice the heads
  }

  static int64_t tokens_at_once(const Args& a) {
    constexpr int64_t kFloats = int64_t{1} << 28, kMost = 32768;  // of a grid's third side
    return std::clamp<int64_t>(kFloats / (a.k * (a.kv_lora + a.rope + 2 * a.heads)), 1, kMost);
  }

  void forward(float* out, float* log_sum) {
    probabilities(log_sum == nullptr ? nullptr : log_sum + begin_ * a_.heads);
    TrainProducts x = of_tokens(a_.heads, a_.kv_lora);
    x.term[0] = {per_token(p_), latents(), a_.k, 1};
    x.c = out + latent_at();
    x.c_row = a_.kv_lora;
    x.c_z = a_.heads * a_.kv_lora;
    products_m_k(context_, x);
  }

  void target(float* p) {
    probabilities();
    mean_rows(context_, set(), a_.heads, p_, p + begin_ * a_.k);
  }

  void backward() {
    scores(2 * a_.heads);
    softmax_rows(context_, set(), a_.heads, a_.softmax_scale, p_);
    softmax_backward_rows(context_, set(), a_.heads, a_.softmax_scale, p_, ds_);
    query_gradients();
    if (spread_is_less()) return spread_gradients();
    row_gradients();
  }

 private:
  int64_t end() const { return a_.first + begin_ + count_; }  // of the rows that they may select
  int64_t latent_at() const { return begin_ * a_.heads * a_.kv_lora; }
  int64_t pe_at() const { return begin_ * a_.heads * a_.q_pe_stride; }
  const int32_t* indices() const { return a_.indices + begin_ * a_.k; }
  RowSet set() const { return {count_, a_.k, 0, indices()}; }

  TrainProducts of_tokens(int64_t m, int64_t n) const {
    TrainProducts p;
    p.m = m;
    p.n = n;
    p.batch = count_;
    return p;
  }
  // Rows of a token, by head: of scores, of what has the shape of q_latent, of q_pe.
  ProductOperand per_token(const float* p) const { return {p, count_ * a_.k, a_.k, 0, nullptr, 0}; }
  ProductOperand per_latent(const float* x) const {
    return {x + latent_at(), a_.kv_lora, a_.heads * a_.kv_lora, 0, nullptr, 0};
  }
  ProductOperand per_pe(const float* x) const {
    return {x + pe_at(), a_.q_pe_stride, a_.heads * a_.q_pe_stride, 0, nullptr, 0};
  }
  // Gathered rows of a token.
  ProductOperand latents() const { return {a_.c_kv, a_.kv_lora, 0, 0, indices(), a_.k}; }
  ProductOperand ropes() const { return {a_.k_pe, a_.rope, 0, 0, indices(), a_.k}; }

  // Scores of the heads; with twice as many rows d_out . c_kv of every head as well, to ds_.
  void scores(int64_t rows) {
    TrainProducts x = of_tokens(rows, a_.k);
    x.terms = 2;
    x.term[0] = {per_latent(a_.q_latent), latents(), a_.kv_lora, 1};
    x.term[1] = {per_pe(a_.q_pe), ropes(), a_.rope, 1};
    x.term[0].a.then = a_.d_out == nullptr ? nullptr : a_.d_out + latent_at();
    x.term[0].a.split = x.term[1].a.split = a_.heads;
    x.c = p_;
    x.c_row = count_ * a_.k;
    x.c_z = a_.k;
    products_m_n(context_, x);
  }

  void probabilities(float* log_sum = nullptr) {
    scores(a_.heads);
    softmax_rows(context_, set(), a_.heads, a_.softmax_scale, p_, log_sum);
  }

  void query_gradients() {
    TrainProducts x = of_tokens(a_.heads, a_.kv_lora);
    x.term[0] = {per_token(ds_), latents(), a_.k, 1};
    x.c = a_.dq_latent + latent_at();
    x.c_row = a_.kv_lora;
    x.c_z = a_.heads * a_.kv_lora;
    products_m_k(context_, x);
    x.n = a_.rope;
    x.term[0].b = ropes();
    x.c = a_.dq_pe + pe_at();
    x.c_row = a_.q_pe_stride;
    x.c_z = a_.heads * a_.q_pe_stride;
    products_m_k(context_, x);
  }

  // Gradients of gathered rows pass through memory; products over all positions read more zeros
  // the longer the sequence. The factor is about the bytes a second over the products.
  bool spread_is_less() const {
    constexpr int64_t kFactor = 128, kFloats = int64_t{1} << 28;
    const int64_t positions = end();
    if (a_.sequences.position != nullptr) return false;
    return (a_.first + a_.tokens) * a_.heads <= kFactor * a_.k &&
           2 * a_.heads * count_ * positions <= kFloats;
  }

  void spread_gradients() {
    const int64_t positions = end(), group = count_ * positions;
    auto* p =
        static_cast<float*>(device_scratch(context_, kRows, 2 * a_.heads * group * int64_t{4}));
    spread_rows(context_, set(), 2 * a_.heads, p_, positions, p);
    float* ds = p + a_.heads * group;
    const int64_t latent = a_.heads * a_.kv_lora, pe = a_.heads * a_.q_pe_stride;
    const ProductOperand from_p{p, positions, 0, group, nullptr, 0};
    const ProductOperand from_ds{ds, positions, 0, group, nullptr, 0};
    TrainProducts x;
    x.m = positions;
    x.n = a_.kv_lora;
    x.terms = 2;
    x.term[0] = {from_p, {a_.d_out + latent_at(), latent, 0, a_.kv_lora}, count_, a_.heads};
    x.term[1] = {from_ds, {a_.q_latent + latent_at(), latent, 0, a_.kv_lora}, count_, a_.heads};
    x.c = a_.dc_kv;
    x.c_row = a_.kv_lora;
    x.add = true;
    x.causal = Causal::kQueries;
    x.offset = end() - count_;
    products_k_k(context_, x);
    x.n = a_.rope;  // every head's first, then their sum
    x.batch = a_.heads;
    x.terms = 1;
    x.add = false;
    x.term[0] = {{ds, positions, group}, {a_.q_pe + pe_at(), pe, a_.q_pe_stride}, count_, 1};
    x.c = static_cast<float*>(
        device_scratch(context_, kHeads, a_.heads * positions * a_.rope * int64_t{4}));
    x.c_row = a_.rope;
    x.c_z = positions * a_.rope;
    products_k_k(context_, x);
    add_groups(context_, x.c, a_.heads, x.c_z, a_.dk_pe);
  }

  void row_gradients() {
    const int64_t width = a_.kv_lora + a_.rope;
    auto* rows =
        static_cast<float*>(device_scratch(context_, kRows, count_ * a_.k * width * int64_t{4}));
    TrainProducts x = of_tokens(a_.k, a_.kv_lora);
    x.terms = 2;
    x.term[0] = {per_token(ds_), per_latent(a_.q_latent), a_.heads, 1};
    x.term[1] = {per_token(p_), per_latent(a_.d_out), a_.heads, 1};
    x.c = rows;
    x.c_row = width;
    x.c_z = a_.k * width;
    products_k_k(context_, x);
    x.terms = 1;
    x.n = a_.rope;
    x.term[0].b = per_pe(a_.q_pe);
    x.c = rows + a_.kv_lora;
    products_k_k(context_, x);
    scatter_rows(context_, {indices(), count_, a_.k, end(), rows, width, a_.kv_lora, a_.dc_kv,
                            a_.dk_pe, a_.sequences, end() - count_});
  }

  KernelContext& context_;
  const Args& a_;
  int64_t begin_, count_;
  float *p_ = nullptr, *ds_ = nullptr;
};

// Calls run(Block) for blocks of tokens, in order.
template <typename Run>
void in_blocks(KernelContext& context, const Args& a, int64_t size, const Run& run) {
  for (int64_t begin = 0; begin < a.tokens; begin += size) {
    Block block(context, a, begin, std::min(size, a.tokens - begin));
    run(block);
  }
}

}  // namespace

void mla_sparse_train_cuda(KernelContext& context, const MlaSparseTrainArgs& args) {
  in_blocks(context, args.in, Block::tokens_at_once(args.in),
            [&](Block& block) { block.forward(args.out, args.log_sum); });
  if (args.target != nullptr) mla_sparse_target_cuda(context, {args.in, args.target});
}

void mla_sparse_backward_cuda(KernelContext& context, const Args& a) {
  mla_sparse_backward_cuda_by(context, a, Block::tokens_at_once(a));
}

void mla_sparse_backward_cuda_by(KernelContext& context, const Args& a, int64_t size) {
  if (a.tokens == 0) return;
  context.device()->fill(a.dc_kv + a.first * a.kv_lora, 0, a.tokens * a.kv_lora * 4);
  context.device()->fill(a.dk_pe + a.first * a.rope, 0, a.tokens * a.rope * 4);
  in_blocks(context, a, size, [](Block& block) { block.backward(); });
}

void mla_sparse_target_cuda(KernelContext& context, const MlaSparseTargetArgs<float>& args) {
  in_blocks(context, args.in, Block::tokens_at_once(args.in),
            [&](Block& block) { block.target(args.p); });
}

}  // namespace tamis
