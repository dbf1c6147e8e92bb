// The list of positions a token attends to in mla_sparse, and how it is cut into chunks.
//
// A chunk is the kernel's smallest (512 or 64 entries), doubled until a list has at most 32: a
// function of the list's length alone. Each chunk is summed from nothing, and chunks are folded in
// order. So it does not matter whether one block goes through a list or several share it: every bit
// is the same.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/mla_sparse/mla_sparse.h"

namespace tamis {

constexpr int kChunkEntries = 512, kMaxChunks = 32;

struct AttentionList {
  const int32_t* indices;  // null: entry i is position i
  KvSequence sequence;
  int length;  // at most; entries from the first -1 on do not count
  int chunk;

  __device__ int entry(int i) const {
    if (i >= length) return -1;
    return indices == nullptr ? i : indices[i];
  }
  __device__ bool has_chunk(int c) const { return entry(c * chunk) >= 0; }
  __device__ int chunks() const { return (length + chunk - 1) / chunk; }
};

__device__ inline AttentionList list_of(const MlaSparseArgs& a, int64_t t,
                                        int smallest_chunk = kChunkEntries) {
  const int visible = a.tokens.position[t] + 1;
  AttentionList list;
  list.sequence = a.tokens.sequences[a.tokens.sequence[t]];
  list.indices = a.indices == nullptr ? nullptr : a.indices + t * a.k;
  list.length = a.indices == nullptr ? visible : static_cast<int>(min(a.k, int64_t{visible}));
  list.chunk = smallest_chunk;
  while (list.chunk * kMaxChunks < list.length) list.chunk *= 2;
  return list;
}

// The most entries and chunks a list of this call can have.
inline int64_t longest_list(const MlaSparseArgs& a) {
  return a.indices == nullptr ? a.tokens.max_context : a.k;
}
inline int64_t most_chunks(const MlaSparseArgs& a, int64_t smallest_chunk = kChunkEntries) {
  const int64_t chunks = (longest_list(a) + smallest_chunk - 1) / smallest_chunk;
  return std::clamp<int64_t>(chunks, 1, kMaxChunks);
}

}  // namespace tamis
