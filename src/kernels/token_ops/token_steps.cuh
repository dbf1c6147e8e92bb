// What token_ops and token_products run on the device: a step of one token by a block of
// kRowThreads threads. Bound by latency: each step waits for what it reads, from L1 or L2.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/elementwise/elementwise_row.cuh"
#include "kernels/embedding/embedding_row.cuh"
#include "kernels/kv_append/kv_append_row.cuh"
#include "kernels/layer_norm/layer_norm_row.cuh"
#include "kernels/moe_permute/moe_combine_row.cuh"
#include "kernels/rms_norm/rms_norm_row.cuh"
#include "kernels/rope/rope_pair.cuh"
#include "kernels/token_ops/token_ops.h"

namespace tamis::token_steps {

constexpr int kThreads = kRowThreads, kWarps = kThreads / 32;

struct Append {
  KvAppendArgs args;
  KvRows rows;
};

// What stands for an operation's arguments on the device.
template <typename Args>
struct OnDevice {
  using Type = Args;
  static Type of(const Args& a) { return a; }
};
template <>
struct OnDevice<KvAppendArgs> {
  using Type = Append;
  static Type of(const KvAppendArgs& a) { return {a, kv_rows(a.kv)}; }
};

template <typename Variant>
struct Largest;
template <typename... Args>
struct Largest<std::variant<Args...>> {
  static constexpr size_t kBytes = std::max({sizeof(typename OnDevice<Args>::Type)...});
};

struct Step {
  int kind, lane;  // kind: index into TokenOp
  alignas(16) std::byte args[Largest<TokenOp>::kBytes];
};

__device__ inline void run(const EmbeddingArgs& a, int64_t t, int64_t) { embed_token(a, t); }
__device__ inline void run(const GatherRowsArgs& a, int64_t t, int64_t) {
  const float* x = a.x + a.row[t] * a.width;
  for (int64_t i = threadIdx.x; i < a.width; i += kThreads) a.y[t * a.width + i] = x[i];
}
__device__ inline void run(const RmsNormArgs& a, int64_t t, int64_t) { rms_norm_row(a, t); }
__device__ inline void run(const LayerNormArgs& a, int64_t t, int64_t) {
  if (threadIdx.x < 32) layer_norm_row(a, t);
}
__device__ inline void run(const RopeArgs& a, int64_t t, int64_t) {
  for (int64_t i = threadIdx.x; i < a.heads * (a.dim / 2); i += kThreads) rope_pair(a, t, i);
}
__device__ inline void run(const Append& a, int64_t t, int64_t) { append_token(a.args, a.rows, t); }
__device__ inline void run(const IndexQueryArgs& a, int64_t t, int64_t tokens) {
  const int64_t each = a.rows / tokens;
  for (int64_t i = threadIdx.x / 32; i < each; i += kWarps) index_query_row(a, t * each + i);
}
__device__ inline void run(const RoundRowsArgs& a, int64_t t, int64_t tokens) {
  const int64_t each = a.rows / tokens;
  for (int64_t i = threadIdx.x; i < each * a.width; i += kThreads) {
    float& x = a.x[(t * each + i / a.width) * a.stride + i % a.width];
    x = round_bf16(x);
  }
}
__device__ inline void run(const MoeCombineArgs& a, int64_t t, int64_t) {
  const bool wide = combines_by_fours(a);
  for (int64_t c = threadIdx.x * (wide ? 4 : 1); c < a.width; c += kThreads * (wide ? 4 : 1)) {
    wide ? combine_columns<true>(a, t, c) : combine_columns<false>(a, t, c);
  }
}
__device__ inline void run(const CheckFiniteArgs& a, int64_t t, int64_t) {
  if (t < a.rows) check_row(a, t);
}
__device__ inline void run(const CheckFlagsArgs& a, int64_t t, int64_t) {
  if (threadIdx.x == 0) check_flag(a, t);
}

template <typename Args>
__device__ inline const Args& args_of(const Step& s) {
  return *reinterpret_cast<const Args*>(s.args);
}

template <size_t kKind = 0>
__device__ inline void run_step(const Step& s, int64_t t, int64_t tokens) {
  if constexpr (kKind < std::variant_size_v<TokenOp>) {
    using Args = typename OnDevice<std::variant_alternative_t<kKind, TokenOp>>::Type;
    if (s.kind == kKind) return run(args_of<Args>(s), t, tokens);
    run_step<kKind + 1>(s, t, tokens);
  }
}

// Three steps of a lane that make a token's cache entry, in one: what is rotated and stored has
// just been made, so nothing is read again, and the page is looked up meanwhile. Bits and memory
// are those of the steps. Only for cache formats of 2 and 4 bytes.
namespace entry {

constexpr int kMostLatent = 1024, kMostKey = 256;  // values

__device__ inline void store(KvFormat format, std::byte* at, int i, float value) {
  if (format == KvFormat::kF32) {
    reinterpret_cast<float*>(at)[i] = value;
  } else {
    reinterpret_cast<uint16_t*>(at)[i] = float_to_bf16_bits(value);
  }
}

__device__ inline std::byte* page_for(const Append& a, int64_t t, int* slot) {
  const TokenMap& tokens = a.args.tokens;
  const KvSequence sequence = tokens.sequences[tokens.sequence[t]];
  const int position = tokens.position[t];
  *slot = position % static_cast<int>(kPageTokens);
  return a.args.kv.base + sequence.pages[position / kPageTokens] * a.rows.page_stride;
}

// The norm of c_kv, RoPE of k_pe, the latent's row.
__device__ inline void latent(const RmsNormArgs& n, const RopeArgs& r, const Append& a, int64_t t) {
  constexpr int kEach = kMostLatent / kThreads;
  const auto thread = static_cast<int>(threadIdx.x), width = static_cast<int>(n.width);
  const int half = static_cast<int>(r.dim) / 2;
  const float* x = n.x + t * n.x_stride;
  float* pe = r.x + t * r.token_stride;
  float v[kEach], w[kEach];
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int c = thread + j * kThreads;
    v[j] = c < width ? x[c] : 0;
    w[j] = c < width ? n.w[c] : 0;
  }
  const auto first = static_cast<int>(first_of_pair(r.layout, thread));
  const auto second = static_cast<int>(second_of_pair(r.layout, thread, half));
  RopePair pair{};
  float cos = 0, sin = 0;
  if (thread < half) {
    pair = {pe[first], pe[second]};
    cos = r.cos[t * half + thread];
    sin = r.sin[t * half + thread];
  }
  int slot;
  std::byte* row = page_for(a, t, &slot);
  row += slot * a.rows.row_bytes;
  double sum = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (thread + j * kThreads < width) sum += static_cast<double>(v[j]) * v[j];
  }
  const auto mean = static_cast<float>(block_sum<kThreads>(sum) / static_cast<double>(width));
  const float scale = 1.0f / sqrtf(mean + n.eps);
  const KvFormat format = a.rows.latent_format;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int c = thread + j * kThreads;
    if (c >= width) continue;
    const float normed = w[j] * (v[j] * scale);
    n.y[t * n.y_stride + c] = normed;
    store(format, row, c, normed);
  }
  if (thread >= half) return;
  pair = rotated(pair, cos, sin);
  pe[first] = pair.first;
  pe[second] = pair.second;
  store(format, row, width + first, pair.first);
  store(format, row, width + second, pair.second);
}

// The norm of the indexer's key, RoPE of its first values, its row; by one warp.
__device__ inline void key(const LayerNormArgs& n, const RopeArgs& r, const Append& a, int64_t t) {
  __shared__ float made[kMostKey];
  if (threadIdx.x >= 32) return;
  const auto lane = static_cast<int>(threadIdx.x), width = static_cast<int>(n.width);
  const int half = static_cast<int>(r.dim) / 2;
  int slot;
  std::byte* row = page_for(a, t, &slot) + a.rows.index_offset;
  const KvFormat format = a.rows.index_format;
  row += slot * width * (format == KvFormat::kF32 ? 4 : 2);
  const float cos0 = lane < half ? r.cos[t * half + lane] : 0;  // on their way with the page
  const float sin0 = lane < half ? r.sin[t * half + lane] : 0;
  LayerNormArgs own = n;
  own.y = made - t * n.y_stride;
  layer_norm_row(own, t);
  __syncwarp();
  for (int i = lane; i < half; i += 32) {
    float& first = made[first_of_pair(r.layout, i)];
    float& second = made[second_of_pair(r.layout, i, half)];
    const RopePair p = rotated({first, second}, i == lane ? cos0 : r.cos[t * half + i],
                               i == lane ? sin0 : r.sin[t * half + i]);
    first = p.first;
    second = p.second;
  }
  __syncwarp();
  for (int c = lane; c < width; c += 32) {
    n.y[t * n.y_stride + c] = made[c];
    store(format, row, c, made[c]);
  }
}

// Kinds of such a step, after those of TokenOp; it stands where its first step was.
constexpr int kLatent = std::variant_size_v<TokenOp>, kKey = kLatent + 1;

inline bool rotates(const RopeArgs& r, const float* x, int64_t stride, int64_t most_pairs) {
  return r.x == x && r.token_stride == stride && r.heads == 1 && r.dim / 2 <= most_pairs;
}

// The kind that the steps a, b and c of a lane are together, or -1.
inline int kind_of(const TokenOp& a, const TokenOp& b, const TokenOp& c) {
  const auto* rope = std::get_if<RopeArgs>(&b);
  const auto* append = std::get_if<KvAppendArgs>(&c);
  if (rope == nullptr || append == nullptr) return -1;
  const KvLayout& l = append->kv.layout;
  if (const auto* n = std::get_if<RmsNormArgs>(&a)) {
    const bool takes = append->index_key == nullptr && append->c_kv == n->y &&
                       append->k_pe == rope->x && append->k_pe_stride == rope->token_stride &&
                       n->delta == nullptr && !n->round_bf16 && n->y_bf16 == nullptr &&
                       n->width == l.kv_lora && n->y_stride == n->width && rope->dim == l.rope &&
                       l.latent_format != KvFormat::kFP8 && n->width <= kMostLatent;
    const bool apart = rope->x >= n->x + n->width && n->y != n->x;
    return takes && apart && rotates(*rope, append->k_pe, rope->token_stride, kThreads) ? kLatent
                                                                                        : -1;
  }
  if (const auto* n = std::get_if<LayerNormArgs>(&a)) {
    const bool takes = append->c_kv == nullptr && append->index_key == n->y &&
                       n->width == l.index_dim && n->y_stride == n->width &&
                       rope->dim <= n->width && l.index_format != KvFormat::kFP8 &&
                       n->width <= kMostKey;
    return takes && rotates(*rope, n->y, n->y_stride, kMostKey) ? kKey : -1;
  }
  return -1;
}

}  // namespace entry

// Runs the lane's steps of a block's token.
template <typename Plan>
__device__ inline void run_lane(const Plan& plan, int count, int lane, int64_t t, int64_t tokens) {
  for (int i = 0; i < count; ++i) {
    const Step& s = plan[i];
    if (s.lane != lane) continue;
    if (s.kind == entry::kLatent) {
      entry::latent(args_of<RmsNormArgs>(s), args_of<RopeArgs>(plan[i + 1]),
                    args_of<Append>(plan[i + 2]), t);
      i += 2;
    } else if (s.kind == entry::kKey) {
      entry::key(args_of<LayerNormArgs>(s), args_of<RopeArgs>(plan[i + 1]),
                 args_of<Append>(plan[i + 2]), t);
      i += 2;
    } else {
      run_step(s, t, tokens);
    }
    __syncthreads();
  }
}

// Kernel parameters by all threads at once: read where they are used, each line of them would be
// waited for. `to`, in shared memory, is aligned to 16.
template <typename Parameters>
__device__ inline const Parameters* fetch(const Parameters& from, std::byte* to) {
  static_assert(sizeof(Parameters) % sizeof(uint4) == 0 && sizeof(Parameters) <= 4096);
  constexpr int kPieces = static_cast<int>(sizeof(Parameters) / sizeof(uint4));
  for (int i = threadIdx.x; i < kPieces; i += kThreads) {
    reinterpret_cast<uint4*>(to)[i] = ptx::load_generic(reinterpret_cast<const uint4*>(&from) + i);
  }
  __syncthreads();
  return reinterpret_cast<const Parameters*>(to);
}

inline Step on_device(const TokenStep& step) {
  Step s{static_cast<int>(step.op.index()), step.lane, {}};
  std::visit(
      [&](const auto& a) {
        const auto args = OnDevice<std::decay_t<decltype(a)>>::of(a);
        std::memcpy(s.args, &args, sizeof(args));
      },
      step.op);
  return s;
}

// Marks the first of three neighbours that are one step (entry).
inline void join_entries(std::span<const TokenStep> steps, Step* list) {
  for (size_t i = 0; i + 2 < steps.size(); ++i) {
    if (steps[i].lane != steps[i + 1].lane || steps[i].lane != steps[i + 2].lane) continue;
    const int kind = entry::kind_of(steps[i].op, steps[i + 1].op, steps[i + 2].op);
    if (kind < 0) continue;
    list[i].kind = kind;
    i += 2;
  }
}

}  // namespace tamis::token_steps
