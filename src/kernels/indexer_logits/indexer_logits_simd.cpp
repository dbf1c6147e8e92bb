// The indexer's scores, vectorised. docs/kernels/indexer.md has the design in prose.
//
// A tile of 32 keys is turned to float once (16 KiB at 128 dims: it stays in L1) and meets all
// heads of a run of tokens. The products of a token are stored [head][key], so that the sum over
// heads, in order, runs with a vector of keys.
#include "kernels/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/indexer_logits/indexer_logits_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
// foreach_target.h reads this file once per instruction set: what follows is not in alphabetical
// order on purpose.
#include <algorithm>
#include <limits>

#include "hwy/highway.h"
#include "kernels/indexer_logits/indexer_logits_impl.h"
#include "kernels/simd/cache_rows-inl.h"
#include "kernels/simd/tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR

void score_block(KernelContext&, int, const IndexerArgs&, const IndexerBlock&, float*, int64_t) {
  throw_no_vectors();
}

#else

constexpr int64_t kKeys = 32;                // keys of a tile
constexpr int kQ = 0, kTile = 1, kDots = 2;  // scratch slots

// q [rows, dim] with rows padded by zeros to `padded`; a copy only where padding is needed.
const float* padded_queries(KernelContext& context, int thread, const float* q, int64_t rows,
                            int64_t dim, int64_t padded) {
  if (dim == padded) return q;
  float* out = context.scratch(thread, kQ, rows * padded);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(q + r * dim, dim, out + r * padded);
    std::fill(out + r * padded + dim, out + (r + 1) * padded, 0.0f);
  }
  return out;
}

void load_keys(const IndexerArgs& a, const KvSequence& seq, int64_t begin, int64_t n,
               int64_t padded, float* tile) {
  const int64_t dim = a.kv.layout.index_dim;
  for (int64_t i = 0; i < round_up(n, kKeyGroup); ++i, tile += padded) {
    if (i >= n) {
      std::fill(tile, tile + padded, 0.0f);
      continue;
    }
    const int64_t s = begin + i;
    index_key_to_float(a.kv.layout, index_page(a.kv, seq, s), s % kPageTokens, tile);
    std::fill(tile + dim, tile + padded, 0.0f);
  }
}

// Asks for the keys of the next tile, which lie in one page: a tile is half of one.
void prefetch_keys(const IndexerArgs& a, const KvSequence& seq, int64_t begin) {
  const int64_t key_bytes =
      a.kv.layout.index_dim * (a.kv.layout.index_format == KvFormat::kF32    ? 4
                               : a.kv.layout.index_format == KvFormat::kBF16 ? 2
                                                                             : 1);
  const std::byte* page = index_page(a.kv, seq, begin);
  prefetch_bytes(page + begin % kPageTokens * key_bytes, kKeys * key_bytes);
}

// out[0 .. n) = sum over heads in order of w[j] ReLU(dots[j]). A NaN product is not below zero and
// stays NaN: it must reach the caller, not look like a zero.
void weigh_heads(const float* HWY_RESTRICT dots, const float* HWY_RESTRICT w, int64_t heads,
                 int64_t n, float* HWY_RESTRICT out) {
  const LaneTag d;
  const LaneVec zero = hn::Zero(d);
  for (int64_t i = 0; i < n; i += kVec) {
    LaneVec sum = zero;
    for (int64_t j = 0; j < heads; ++j) {
      const LaneVec dot = hn::LoadU(d, dots + j * kKeys + i);
      sum = hn::MulAdd(hn::Set(d, w[j]), hn::IfThenZeroElse(hn::Lt(dot, zero), dot), sum);
    }
    if (i + kVec <= n) {
      hn::StoreU(sum, d, out + i);
    } else {
      HWY_ALIGN float lanes[kDotLanes];
      hn::StoreU(sum, d, lanes);
      std::copy_n(lanes, n - i, out + i);
    }
  }
}

void score_block(KernelContext& context, int thread, const IndexerArgs& a,
                 const IndexerBlock& block, float* out, int64_t stride) {
  const int64_t dim = a.kv.layout.index_dim, padded = round_up(dim, kDotLanes);
  const int64_t rows = (block.t1 - block.t0) * a.heads;
  const KvSequence& seq = a.tokens.sequences[a.tokens.sequence[block.t0]];
  const float* q =
      padded_queries(context, thread, a.q + block.t0 * a.heads * dim, rows, dim, padded);
  float* tile = context.scratch(thread, kTile, kKeys * padded);
  float* dots = context.scratch(thread, kDots, rows * kKeys);
  for (int64_t begin = block.begin; begin < block.end; begin += kKeys) {
    const int64_t n = std::min(kKeys, block.end - begin);
    load_keys(a, seq, begin, n, padded, tile);
    if (begin + kKeys < block.end) prefetch_keys(a, seq, begin + kKeys);
    dot_rows(q, padded, rows, tile, padded, n, padded, dots, kKeys);
    for (int64_t t = block.t0; t < block.t1; ++t) {
      const int64_t visible = std::min<int64_t>(n, a.tokens.position[t] + 1 - begin);
      weigh_heads(dots + (t - block.t0) * a.heads * kKeys, a.w + t * a.heads, a.heads, visible,
                  out + (t - block.t0) * stride + begin - block.begin);
    }
  }
}

#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tamis {

HWY_EXPORT(score_block);

void indexer_block_simd(KernelContext& context, int thread, const IndexerArgs& args,
                        const IndexerBlock& block, float* out, int64_t stride) {
  HWY_DYNAMIC_DISPATCH(score_block)(context, thread, args, block, out, stride);
}

int64_t indexer_cut_tokens(const IndexerArgs& args, int32_t* starts) {
  constexpr int64_t kRows = 64;
  const int64_t most = std::clamp<int64_t>(kRows / args.heads, 1, 8);
  const TokenMap& m = args.tokens;
  int64_t runs = 0, begin = 0;
  for (int64_t t = 0; t < m.num_tokens; ++t) {
    if (t == 0 || t - begin == most || m.sequence[t] != m.sequence[begin]) {
      starts[runs++] = static_cast<int32_t>(t);
      begin = t;
    }
  }
  starts[runs] = static_cast<int32_t>(m.num_tokens);
  return runs;
}

void indexer_logits_simd(KernelContext& context, const IndexerLogitsArgs& args) {
  constexpr int64_t kPositions = 2048;  // of a task
  constexpr int kStarts = 3;
  const TokenMap& m = args.in.tokens;
  auto* starts = reinterpret_cast<int32_t*>(context.scratch(0, kStarts, m.num_tokens + 1));
  const int64_t runs = indexer_cut_tokens(args.in, starts);
  const int64_t parts = (args.logits_stride + kPositions - 1) / kPositions;
  context.pool().run(runs * parts, [&](int64_t i, int thread) {
    const int64_t t0 = starts[i / parts], t1 = starts[i / parts + 1];
    const int64_t begin = i % parts * kPositions;
    const int64_t part_end = std::min(begin + kPositions, args.logits_stride);
    const int64_t longest = *std::max_element(m.position + t0, m.position + t1) + 1;
    if (begin < longest) {
      indexer_block_simd(context, thread, args.in, {t0, t1, begin, std::min(part_end, longest)},
                         args.logits + t0 * args.logits_stride + begin, args.logits_stride);
    }
    for (int64_t t = t0; t < t1; ++t) {
      float* row = args.logits + t * args.logits_stride;
      const int64_t first_hidden = std::clamp<int64_t>(m.position[t] + 1, begin, part_end);
      std::fill(row + first_hidden, row + part_end, -std::numeric_limits<float>::infinity());
    }
  });
}

}  // namespace tamis
#endif  // HWY_ONCE
