// mla_sparse_backward by blocks of tokens: gather the selected rows [block, k, kv_lora + rope],
// matrix products per token (kernels/matmul), scatter in order. The gradients of the gathered rows
// take the rows' own place.
#include <algorithm>
#include <cstring>

#include "kernels/matmul/matmul.h"
#include "kernels/mla_sparse/mla_sparse_backward_impl.h"
#include "kernels/mla_sparse/ordered_scatter.h"
#include "kernels/simd/row_ops.h"

namespace tamis {
namespace {

using Args = MlaSparseBackwardArgs<float>;

// Scratch slots of thread 0; matmul has slots 0 and 1 of every thread.
constexpr int kRows = 4, kP = 5, kDs = 6;

class Block {
 public:
  Block(KernelContext& context, const Args& args, int64_t begin, int64_t count)
      : context_(context), a_(args), begin_(begin), count_(count) {
    rows_ = context.scratch(0, kRows, count * a_.k * width());
    p_ = context.scratch(0, kP, count * a_.heads * a_.k);
    for (int64_t i = 0; i < count; ++i) selected_.push_back(selected_count(set(i), a_.k));
  }

  static int64_t tokens_at_once(const Args& a) {
    constexpr int64_t kFloats = int64_t{1} << 22, kMost = 64;
    return std::clamp<int64_t>(kFloats / (a.k * (a.kv_lora + a.rope)), 1, kMost);
  }

  void backward(InvertedIndex& index) {
    ds_ = context_.scratch(0, kDs, count_ * a_.heads * a_.k);
    probabilities();
    score_gradients();
    query_gradients();
    row_gradients();
    scatter(index);
  }

  void target(float* p) {
    probabilities();
    const float share = 1.0f / static_cast<float>(a_.heads);
    context_.pool().run(count_, [&](int64_t i, int) {
      float* mean = p + (begin_ + i) * a_.k;
      std::fill_n(mean, a_.k, 0.0f);
      for (int64_t h = 0; h < a_.heads; ++h) add_row(p_of(i) + h * a_.k, selected(i), mean);
      for (int64_t s = 0; s < selected(i); ++s) mean[s] *= share;
    });
  }

 private:
  int64_t width() const { return a_.kv_lora + a_.rope; }
  const int32_t* set(int64_t i) const { return a_.indices + (begin_ + i) * a_.k; }
  int64_t selected(int64_t i) const { return selected_[static_cast<size_t>(i)]; }
  float* rows(int64_t i) const { return rows_ + i * a_.k * width(); }
  float* p_of(int64_t i) const { return p_ + i * a_.heads * a_.k; }
  float* ds_of(int64_t i) const { return ds_ + i * a_.heads * a_.k; }
  int64_t latent(int64_t i) const { return (begin_ + i) * a_.heads * a_.kv_lora; }
  int64_t pe(int64_t i) const { return (begin_ + i) * a_.heads * a_.q_pe_stride; }

  // to [heads, selected] = or += x rows^T over the columns [column, column + inner) of the rows
  MatmulArgs<float> against_rows(const float* x, int64_t x_row, int64_t i, int64_t column,
                                 int64_t inner, float* to, bool add) const {
    return {x, x_row, 1, rows(i) + column, 1, width(), to, a_.k, a_.heads, selected(i), inner, add};
  }

  void probabilities() {
    std::vector<MatmulArgs<float>> latents, ropes;
    context_.pool().run(count_, [&](int64_t i, int) {
      for (int64_t s = 0; s < selected(i); ++s) {
        float* to = rows(i) + s * width();
        std::memcpy(to, a_.c_kv + set(i)[s] * a_.kv_lora,
                    static_cast<size_t>(a_.kv_lora) * sizeof(float));
        std::memcpy(to + a_.kv_lora, a_.k_pe + set(i)[s] * a_.rope,
                    static_cast<size_t>(a_.rope) * sizeof(float));
      }
    });
    for (int64_t i = 0; i < count_; ++i) {
      latents.push_back(
          against_rows(a_.q_latent + latent(i), a_.kv_lora, i, 0, a_.kv_lora, p_of(i), false));
      ropes.push_back(
          against_rows(a_.q_pe + pe(i), a_.q_pe_stride, i, a_.kv_lora, a_.rope, p_of(i), true));
    }
    matmuls<float>(context_, latents);
    matmuls<float>(context_, ropes);
    context_.pool().run(count_, [&](int64_t i, int) {
      for (int64_t h = 0; h < a_.heads; ++h) {
        softmax_row(p_of(i) + h * a_.k, selected(i), a_.k, a_.softmax_scale);
      }
    });
  }

  void score_gradients() {
    std::vector<MatmulArgs<float>> list;
    for (int64_t i = 0; i < count_; ++i) {
      list.push_back(
          against_rows(a_.d_out + latent(i), a_.kv_lora, i, 0, a_.kv_lora, ds_of(i), false));
    }
    matmuls<float>(context_, list);
    context_.pool().run(count_, [&](int64_t i, int) {
      for (int64_t h = 0; h < a_.heads; ++h) {
        const int64_t row = h * a_.k;
        softmax_backward_row(p_of(i) + row, ds_of(i) + row, selected(i), a_.softmax_scale);
      }
    });
  }

  void query_gradients() {
    std::vector<MatmulArgs<float>> list;
    for (int64_t i = 0; i < count_; ++i) {
      list.push_back({ds_of(i), a_.k, 1, rows(i), width(), 1, a_.dq_latent + latent(i), a_.kv_lora,
                      a_.heads, a_.kv_lora, selected(i)});
      list.push_back({ds_of(i), a_.k, 1, rows(i) + a_.kv_lora, width(), 1, a_.dq_pe + pe(i),
                      a_.q_pe_stride, a_.heads, a_.rope, selected(i)});
    }
    matmuls<float>(context_, list);
  }

  // rows <- their gradients
  void row_gradients() {
    std::vector<MatmulArgs<float>> from_scores, from_values;
    for (int64_t i = 0; i < count_; ++i) {
      from_scores.push_back({ds_of(i), 1, a_.k, a_.q_latent + latent(i), a_.kv_lora, 1, rows(i),
                             width(), selected(i), a_.kv_lora, a_.heads});
      from_scores.push_back({ds_of(i), 1, a_.k, a_.q_pe + pe(i), a_.q_pe_stride, 1,
                             rows(i) + a_.kv_lora, width(), selected(i), a_.rope, a_.heads});
      from_values.push_back({p_of(i), 1, a_.k, a_.d_out + latent(i), a_.kv_lora, 1, rows(i),
                             width(), selected(i), a_.kv_lora, a_.heads, true});
    }
    matmuls<float>(context_, from_scores);
    matmuls<float>(context_, from_values);
  }

  void scatter(InvertedIndex& index) {
    index.build(set(0), count_, a_.k);
    context_.pool().run(index.touched(), [&](int64_t i, int) {
      const int64_t s = index.position(i);
      index.for_each(i, [&](int64_t pair) {
        const float* row = rows_ + pair * width();
        add_row(row, a_.kv_lora, a_.dc_kv + s * a_.kv_lora);
        add_row(row + a_.kv_lora, a_.rope, a_.dk_pe + s * a_.rope);
      });
    });
  }

  KernelContext& context_;
  const Args& a_;
  int64_t begin_, count_;
  std::vector<int64_t> selected_;
  float *rows_ = nullptr, *p_ = nullptr, *ds_ = nullptr;
};

}  // namespace

void mla_sparse_backward_gathered(KernelContext& context, const Args& a) {
  std::fill_n(a.dc_kv + a.first * a.kv_lora, a.tokens * a.kv_lora, 0.0f);
  std::fill_n(a.dk_pe + a.first * a.rope, a.tokens * a.rope, 0.0f);
  InvertedIndex index(a.first + a.tokens);
  const int64_t size = Block::tokens_at_once(a);
  for (int64_t begin = 0; begin < a.tokens; begin += size) {
    Block(context, a, begin, std::min(size, a.tokens - begin)).backward(index);
  }
}

void mla_sparse_target_gathered(KernelContext& context, const MlaSparseTargetArgs<float>& args) {
  const Args& a = args.in;
  const int64_t size = Block::tokens_at_once(a);
  for (int64_t begin = 0; begin < a.tokens; begin += size) {
    Block(context, a, begin, std::min(size, a.tokens - begin)).target(args.p);
  }
}

}  // namespace tamis
