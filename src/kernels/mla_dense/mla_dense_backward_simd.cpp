// mla_dense_backward by blocks of queries: for each block the scores of all heads [block, heads,
// visible], their softmax, and seven matrix products (kernels/matmul) over all heads at once. About
// 2.5 times the forward pass's products; half of each block's last square is multiplied by zeros.
#include <algorithm>

#include "kernels/matmul/matmul.h"
#include "kernels/mla_dense/mla_dense_backward_impl.h"
#include "kernels/simd/row_ops.h"

namespace tamis {
namespace {

// Scratch slots of thread 0; matmul has slots 0 and 1 of every thread.
constexpr int kP = 4, kDs = 5;

class Block {
 public:
  Block(KernelContext& context, const MlaDenseBackwardArgs<float>& args, const QueryBlock& block)
      : context_(context), a_(args), in_(args.in), block_(block) {
    const int64_t floats = block.rows() * in_.heads * block.end;
    p_ = context.scratch(0, kP, floats);
    ds_ = context.scratch(0, kDs, floats);
  }

  void run() {
    mla_probabilities_blocked(context_, in_, block_, p_);
    score_gradients();
    query_gradients();
    key_gradients();
  }

 private:
  int64_t qk() const { return in_.nope + in_.rope; }
  int64_t kv() const { return in_.nope + in_.v_dim; }
  int64_t seen() const { return block_.end; }
  // Element 0 of the block's first query, head h.
  int64_t q_at(int64_t h) const { return (block_.begin * in_.heads + h) * qk(); }
  int64_t out_at(int64_t h) const { return (block_.begin * in_.heads + h) * in_.v_dim; }

  // ds <- the gradient of the unscaled scores
  void score_gradients() {
    std::vector<MatmulArgs<float>> list;
    for (int64_t h = 0; h < in_.heads; ++h) {  // dP = d_out v^T
      list.push_back({a_.d_out + out_at(h), in_.heads * in_.v_dim, 1, in_.kv + h * kv() + in_.nope,
                      1, in_.heads * kv(), ds_ + h * seen(), in_.heads * seen(), block_.rows(),
                      seen(), in_.v_dim});
    }
    matmuls<float>(context_, list);
    context_.pool().run(block_.rows(), [&](int64_t i, int) {
      for (int64_t h = 0; h < in_.heads; ++h) {
        const int64_t row = (i * in_.heads + h) * seen(), n = block_.begin + i + 1;
        softmax_backward_row(p_ + row, ds_ + row, n, in_.softmax_scale);
        std::fill(ds_ + row + n, ds_ + row + seen(), 0.0f);
      }
    });
  }

  void query_gradients() {
    std::vector<MatmulArgs<float>> list;
    for (int64_t h = 0; h < in_.heads; ++h) {
      list.push_back({ds_ + h * seen(), in_.heads * seen(), 1, in_.kv + h * kv(), in_.heads * kv(),
                      1, a_.dq + q_at(h), in_.heads * qk(), block_.rows(), in_.nope, seen()});
    }
    list.push_back({ds_, seen(), 1, in_.k_pe, in_.rope, 1, a_.dq + q_at(0) + in_.nope, qk(),
                    block_.rows() * in_.heads, in_.rope, seen()});
    matmuls<float>(context_, list);
  }

  // Transposed: seen() rows of keys, summed over the block's queries, added to earlier blocks.
  void key_gradients() {
    std::vector<MatmulArgs<float>> list;
    for (int64_t h = 0; h < in_.heads; ++h) {
      list.push_back({ds_ + h * seen(), 1, in_.heads * seen(), in_.q + q_at(h), in_.heads * qk(), 1,
                      a_.dkv + h * kv(), in_.heads * kv(), seen(), in_.nope, block_.rows(), true});
      list.push_back({p_ + h * seen(), 1, in_.heads * seen(), a_.d_out + out_at(h),
                      in_.heads * in_.v_dim, 1, a_.dkv + h * kv() + in_.nope, in_.heads * kv(),
                      seen(), in_.v_dim, block_.rows(), true});
    }
    list.push_back({ds_, 1, seen(), in_.q + q_at(0) + in_.nope, qk(), 1, a_.dk_pe, in_.rope, seen(),
                    in_.rope, block_.rows() * in_.heads, true});
    matmuls<float>(context_, list);
  }

  KernelContext& context_;
  const MlaDenseBackwardArgs<float>& a_;
  const MlaSequence<float>& in_;
  QueryBlock block_;
  float *p_, *ds_;
};

}  // namespace

int64_t query_block_size(int64_t tokens, int64_t rows_per_query) {
  constexpr int64_t kFloats = int64_t{1} << 23, kFewest = 8, kMost = 128;
  return std::clamp(kFloats / std::max<int64_t>(1, tokens * rows_per_query), kFewest, kMost);
}

void mla_probabilities_blocked(KernelContext& context, const MlaSequence<float>& in,
                               const QueryBlock& block, float* p) {
  const int64_t qk = in.nope + in.rope, kv = in.nope + in.v_dim, seen = block.end;
  const float* q = in.q + block.begin * in.heads * qk;
  std::vector<MatmulArgs<float>> list;
  for (int64_t h = 0; h < in.heads; ++h) {
    list.push_back({q + h * qk, in.heads * qk, 1, in.kv + h * kv, 1, in.heads * kv, p + h * seen,
                    in.heads * seen, block.rows(), seen, in.nope});
  }
  matmuls<float>(context, list);
  matmul<float>(context, {q + in.nope, qk, 1, in.k_pe, 1, in.rope, p, seen, block.rows() * in.heads,
                          seen, in.rope, true});
  context.pool().run(block.rows(), [&](int64_t i, int) {
    for (int64_t h = 0; h < in.heads; ++h) {
      softmax_row(p + (i * in.heads + h) * seen, block.begin + i + 1, seen, in.softmax_scale);
    }
  });
}

void mla_dense_backward_blocked(KernelContext& context, const MlaDenseBackwardArgs<float>& a) {
  const MlaSequence<float>& in = a.in;
  std::fill_n(a.dkv, in.tokens * in.heads * (in.nope + in.v_dim), 0.0f);
  std::fill_n(a.dk_pe, in.tokens * in.rope, 0.0f);
  const int64_t size = query_block_size(in.tokens, in.heads);
  for (int64_t begin = 0; begin < in.tokens; begin += size) {
    Block(context, a, {begin, std::min(begin + size, in.tokens)}).run();
  }
}

}  // namespace tamis
