#include "train/sparse_attention.h"

#include <algorithm>

namespace tamis {
namespace {

// Tokens of a block.
struct Block {
  int64_t begin, count;
};

// Tokens of a block that one call of an operation takes. Their rows are those of the tokens from
// `rows` on.
struct Part {
  int64_t begin, count, rows;
  TokenSequences sequences;
};

template <typename T, typename Body>
void for_each_block(const Pass<T>& p, const Body& body) {
  const int64_t n = p.tokens(), wanted = p.objective.latent_tokens;
  const int64_t size = wanted > 0 ? wanted : latent_block(p.config);
  for (int64_t begin = 0; begin < n; begin += size) body(Block{begin, std::min(size, n - begin)});
}

// Runs body(Part) for what the operations take at once of a block: all of it on a GPU, what it has
// of each sequence on a CPU.
template <typename T, typename Body>
void for_each_part(const Pass<T>& p, const Block& block, const Body& body) {
  if (p.kernels.device() != nullptr) {
    return body(Part{block.begin, block.count, 0, {p.state.position.data(), longest_sequence(p)}});
  }
  for_each_sequence(p, [&](int64_t begin, int64_t count) {
    const int64_t first = std::max(begin, block.begin);
    const int64_t end = std::min(begin + count, block.begin + block.count);
    if (first < end) body(Part{first, end - first, begin, {}});
  });
}

// q_latent: that of the block.
template <typename T>
MlaSparseBackwardArgs<T> arguments(const Pass<T>& p, int64_t l, const Block& block,
                                   const Part& part) {
  const ModelConfig& m = p.config;
  const LayerState<T>& a = p.layer(l);
  MlaSparseBackwardArgs<T> s;
  s.q_latent = p.state.work.q_latent.data() + (part.begin - block.begin) * m.num_heads * m.kv_lora;
  s.q_pe = a.q.data() + part.begin * m.num_heads * m.qk_head() + m.nope;
  s.q_pe_stride = m.qk_head();
  s.c_kv = a.c_kv.data() + part.rows * m.kv_lora;
  s.k_pe = a.k_pe.data() + part.rows * m.rope;
  s.tokens = part.count;
  s.heads = m.num_heads;
  s.kv_lora = m.kv_lora;
  s.rope = m.rope;
  s.indices = a.indices.data() + part.begin * p.objective.topk;
  s.k = p.objective.topk;
  s.sequences = part.sequences;
  s.first = part.begin - part.rows;
  s.softmax_scale = static_cast<T>(m.softmax_scale());
  return s;
}

// The rows of W_kvb of head h: W_UK, then W_UV.
template <typename T>
T* head_rows(T* kv_b, const ModelConfig& m, int64_t h) {
  return kv_b + h * (m.nope + m.v_head) * m.kv_lora;
}

// q_latent = q W_UK of every head.
template <typename T>
void absorb(Pass<T>& p, int64_t l, const Block& block) {
  const ModelConfig& m = p.config;
  const int64_t heads = m.num_heads, q = heads * m.qk_head(), latent = heads * m.kv_lora;
  const T* from = p.layer(l).q.data() + block.begin * q;
  T* to = sized(p, p.state.work.q_latent, block.count * latent);
  std::vector<MatmulArgs<T>> list;
  for (int64_t h = 0; h < heads; ++h) {
    const T* w = head_rows(p.w + p.slots(l).kv_b, m, h);
    list.push_back({from + h * m.qk_head(), q, 1, w, m.kv_lora, 1, to + h * m.kv_lora, latent,
                    block.count, m.kv_lora, m.nope});
  }
  matmuls<T>(p.kernels, list);
}

// The block's sum P c_kv of every head [count, heads, kv_lora], from its q_latent; target may be
// null.
template <typename T>
const T* latent_outputs(Pass<T>& p, int64_t l, const Block& block, T* target) {
  LayerState<T>& a = p.layer(l);
  const int64_t heads = p.config.num_heads, latent = heads * p.config.kv_lora;
  const bool on_device = p.kernels.device() != nullptr;
  T* out = p.objective.recompute ? sized(p, p.state.work.o_latent, block.count * latent)
                                 : a.o_latent.data() + block.begin * latent;
  for_each_part(p, block, [&](const Part& part) {
    const MlaSparseBackwardArgs<T> args = arguments(p, l, block, part);
    T* to = target == nullptr ? nullptr : target + part.begin * p.objective.topk;
    ForwardOps<T>::attend_sparse(p.kernels, args, out + (part.begin - block.begin) * latent,
                                 on_device ? a.log_sum.data() + part.begin * heads : nullptr, to);
    if (!on_device && to != nullptr) mla_sparse_target<T>(p.kernels, {args, to});
  });
  return out;
}

}  // namespace

int64_t latent_block(const ModelConfig& config) {
  // As products on CPUs add: so blocks there leave the bits of one.
  constexpr int64_t kMultiple = 256, kValues = int64_t{1} << 28;
  return std::max(kValues / (config.num_heads * config.kv_lora) / kMultiple, int64_t{1}) *
         kMultiple;
}

template <typename T>
void attend_gathered(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  const int64_t n = p.tokens(), heads = m.num_heads;
  const int64_t latent = heads * m.kv_lora, v = heads * m.v_head;
  sized_if(!p.objective.recompute, p, a.o_latent, n * latent);
  sized_if(p.kernels.device() != nullptr, p, a.log_sum, n * heads);
  T* target = sized_if(p.objective.train_indexer, p, p.state.work.target, n * p.objective.topk);
  T* o = sized(p, a.o, n * v);
  for_each_block(p, [&](const Block& block) {
    absorb(p, l, block);
    const T* out = latent_outputs(p, l, block, target);
    std::vector<MatmulArgs<T>> values;
    for (int64_t h = 0; h < heads; ++h) {
      const T* w = head_rows(p.w + p.slots(l).kv_b, m, h);
      values.push_back({out + h * m.kv_lora, latent, 1, w + m.nope * m.kv_lora, 1, m.kv_lora,
                        o + block.begin * v + h * m.v_head, v, block.count, m.v_head, m.kv_lora});
    }
    matmuls<T>(p.kernels, values);
  });
}

template <typename T>
void attend_gathered_backward(Pass<T>& p, int64_t l) {
  const ModelConfig& m = p.config;
  LayerState<T>& a = p.layer(l);
  Workspace<T>& work = p.state.work;
  const int64_t heads = m.num_heads, qk = m.qk_head(), q = heads * qk;
  const int64_t latent = heads * m.kv_lora, v = heads * m.v_head, c = m.kv_lora;
  for_each_block(p, [&](const Block& block) {
    const int64_t count = block.count;
    absorb(p, l, block);
    const T* out = p.objective.recompute ? latent_outputs<T>(p, l, block, nullptr)
                                         : a.o_latent.data() + block.begin * latent;
    T* do_latent = sized(p, work.do_latent, count * latent);
    T* dq_latent = sized(p, work.dq_latent, count * latent);
    std::vector<MatmulArgs<T>> values, keys;
    for (int64_t h = 0; h < heads; ++h) {
      const T* w = head_rows(p.w + p.slots(l).kv_b, m, h);
      T* dw = head_rows(p.grad + p.slots(l).kv_b, m, h);
      const T* d_o = work.d_o.data() + block.begin * v + h * m.v_head;
      const T* from_q = a.q.data() + block.begin * q + h * qk;
      values.push_back(
          {d_o, v, 1, w + m.nope * c, c, 1, do_latent + h * c, latent, count, c, m.v_head});
      values.push_back(
          {d_o, 1, v, out + h * c, latent, 1, dw + m.nope * c, c, m.v_head, c, count, true});
      keys.push_back({dq_latent + h * c, latent, 1, w, 1, c,
                      work.dq.data() + block.begin * q + h * qk, q, count, m.nope, c});
      keys.push_back({from_q, 1, q, dq_latent + h * c, latent, 1, dw, c, m.nope, c, count, true});
    }
    matmuls<T>(p.kernels, values);
    for_each_part(p, block, [&](const Part& part) {
      const int64_t at = (part.begin - block.begin) * latent;
      MlaSparseBackwardArgs<T> s = arguments(p, l, block, part);
      s.d_out = do_latent + at;
      s.dq_latent = dq_latent + at;
      s.dq_pe = work.dq.data() + part.begin * q + m.nope;
      s.dc_kv = work.dc_kv.data() + part.rows * c;
      s.dk_pe = work.dk_pe.data() + part.rows * m.rope;
      if (p.kernels.device() != nullptr) {
        s.out = out + at;
        s.log_sum = a.log_sum.data() + part.begin * heads;
      }
      mla_sparse_backward<T>(p.kernels, s);
    });
    matmuls<T>(p.kernels, keys);
  });
}

template void attend_gathered(Pass<float>&, int64_t);
template void attend_gathered(Pass<double>&, int64_t);
template void attend_gathered_backward(Pass<float>&, int64_t);
template void attend_gathered_backward(Pass<double>&, int64_t);

}  // namespace tamis
