// How indexer_kl_sparse's kernels of a block a token (few and many heads) go through the tokens.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/train_rows.h"
#include "kernels/indexer_kl/indexer_kl_impl.h"

namespace tamis {

// Launches `kernel`, of `threads` threads and `bytes` of shared memory, with `problem` for all
// tokens of problem.a. Where gradients are added atomically that is one launch. Else as many tokens
// at a time as gradients of their keys, at problem.row_gradients [tokens from problem.first, k,
// dim], take about 1 GiB of scratch memory `slot`; scatter_rows adds these to dk.
template <typename Problem>
void kl_of_tokens(KernelContext& context, void (*kernel)(Problem), Problem problem, int threads,
                  int bytes, bool atomic, int slot, const char* name) {
  const IndexerKlSparseArgs<float>& a = problem.a;
  const int64_t tokens = a.indexer.tokens, dim = a.indexer.dim;
  allow_shared(reinterpret_cast<const void*>(kernel), bytes, name);
  constexpr int64_t kFloats = int64_t{1} << 28;
  const int64_t size = atomic ? tokens : std::clamp<int64_t>(kFloats / (a.count * dim), 1, tokens);
  if (!atomic) {
    problem.row_gradients =
        static_cast<float*>(device_scratch(context, slot, size * a.count * dim * int64_t{4}));
  }
  for (problem.first = 0; problem.first < tokens; problem.first += size) {
    const int64_t count = std::min(size, tokens - problem.first);
    kernel<<<static_cast<unsigned>(count), threads, static_cast<size_t>(bytes),
             stream_of(context)>>>(problem);
    check_launch(name);
    if (atomic) return;
    scatter_rows(context, {a.indices + problem.first * a.count, count, a.count,
                           problem.first + count, problem.row_gradients, dim, dim, a.indexer.dk,
                           nullptr, a.sequences, problem.first});
  }
}

}  // namespace tamis
