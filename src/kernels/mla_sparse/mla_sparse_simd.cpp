// Attention over a selection, vectorised. docs/kernels/mla_sparse.md has the design in prose.
//
// A token's list is cut into chunks of fixed length, a chunk into tiles of 64 positions. A tile's
// rows are turned to float once and serve every head of the task. Chunks start from nothing and are
// merged in order, so that threads may share one token's list without changing a bit.
#include "kernels/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/mla_sparse/mla_sparse_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
// foreach_target.h reads this file once per instruction set: what follows is not in alphabetical
// order on purpose.
#include "hwy/highway.h"
#include "kernels/mla_sparse/mla_sparse_impl.h"
#include "kernels/mla_sparse/mla_sparse_rows-inl.h"
#include "kernels/simd/softmax-inl.h"
#include "kernels/simd/tiles-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tamis {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_SCALAR

void run(KernelContext&, const MlaSparseArgs&) { throw_no_vectors(); }

#else

constexpr int64_t kMinChunk = 256;  // entries
constexpr int64_t kMaxChunks = 32;  // bounds the partial results of a split list
constexpr int kQ = 0, kRows = 1, kScores = 2, kAcc = 3, kChunkAcc = 4, kStates = 5;  // scratch
constexpr int kStarts = 6, kPartials = 7;                                            // of thread 0

// The chunk length of a list: a function of its length alone.
int64_t chunk_entries(int64_t length) {
  int64_t chunk = kMinChunk;
  while (chunk * kMaxChunks < length) chunk *= 2;
  return chunk;
}

struct Buffers {
  Buffers(KernelContext& context, int thread, const Sizes& s, int64_t rows)
      : q(context.scratch(thread, kQ, rows * s.dim)),
        tile(context.scratch(thread, kRows, kTile * s.row_stride)),
        scores(context.scratch(thread, kScores, kMaxRows * kTile)) {}
  float *q, *tile, *scores;
};

// Where the entries of a tile come from, for the prefetch of the next one.
struct Source {
  const KvSequence* seq;
  List list;
  int64_t begin;
};

// One token's heads against a tile of n entries. The next tile's rows are asked for between blocks
// of this one: their latency hides behind the arithmetic.
void attend_tile(const MlaSparseArgs& a, const Sizes& s, const Buffers& b, int64_t heads,
                 const float* q, int64_t n, const Source& source, float* acc, RowState* states) {
  constexpr int64_t kBlock = 8;
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t next = source.begin + kTile + i;
    prefetch_rows(a, *source.seq, source.list, next, next + kBlock);
    dot_rows(q, s.dim, heads, b.tile + i * s.row_stride, s.row_stride, std::min(kBlock, n - i),
             s.dim, b.scores + i, kTile);
  }
  for (int64_t h = 0; h < heads; ++h) {
    softmax_tile(b.scores + h * kTile, n, s.cols, acc + h * s.cols, states + h);
  }
  value_rows(b.scores, kTile, heads, b.tile, s.row_stride, n, s.latent, acc, s.cols);
}

// Chunk `chunk` of the task's lists, from nothing: acc [rows, cols], states [rows].
void attend_chunk(const MlaSparseArgs& a, const Sizes& s, const Buffers& b, const Task& task,
                  int64_t chunk, float* acc, RowState* states) {
  std::fill(acc, acc + task.rows() * s.cols, 0.0f);
  std::fill(states, states + task.rows(), RowState());
  const KvSequence& seq = a.tokens.sequences[a.tokens.sequence[task.t0]];
  const List longest = list_of(a, task.t1 - 1);
  const int64_t entries = chunk_entries(longest.length);
  const int64_t end = std::min((chunk + 1) * entries, longest.length);
  for (int64_t begin = chunk * entries; begin < end; begin += kTile) {
    load_tile(a, s, seq, longest, begin, std::min(kTile, end - begin), b.tile);
    for (int64_t t = task.t0; t < task.t1; ++t) {
      const int64_t n = std::min(kTile, list_of(a, t).length - begin);
      if (n <= 0) continue;
      const int64_t row = (t - task.t0) * task.heads();
      const Source source{&seq, t == task.t0 ? longest : List(), begin};
      attend_tile(a, s, b, task.heads(), b.q + row * s.dim, n, source, acc + row * s.cols,
                  states + row);
    }
  }
}

int64_t chunks_of(const MlaSparseArgs& a, int64_t t) {
  const int64_t length = list_of(a, t).length, entries = chunk_entries(length);
  return (length + entries - 1) / entries;
}

float* output(const MlaSparseArgs& a, int64_t t, int64_t h) {
  return a.out + (t * a.heads + h) * a.kv.layout.kv_lora;
}

// A task by one thread: chunk after chunk.
void run_whole(KernelContext& context, int thread, const MlaSparseArgs& a, const Sizes& s,
               const Task& task) {
  const int64_t rows = task.rows(), heads = task.heads();
  const Buffers b(context, thread, s, rows);
  float* acc = context.scratch(thread, kAcc, rows * s.cols);
  float* next = context.scratch(thread, kChunkAcc, rows * s.cols);
  auto* states = reinterpret_cast<RowState*>(context.scratch(thread, kStates, 4 * rows));
  RowState* next_states = states + rows;
  load_queries(a, s, task, b.q);
  attend_chunk(a, s, b, task, 0, acc, states);
  const int64_t chunks = chunks_of(a, task.t1 - 1);
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    attend_chunk(a, s, b, task, chunk, next, next_states);
    for (int64_t r = 0; r < rows; ++r) {
      if (chunk < chunks_of(a, task.t0 + r / heads)) {
        merge_rows(next + r * s.cols, next_states[r], s.cols, acc + r * s.cols, states + r);
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* out = output(a, task.t0 + r / heads, task.h0 + r % heads);
    finish_row(acc + r * s.cols, states[r], s.latent, out);
  }
}

// Cuts the tokens into runs that can share tiles; starts[i] .. starts[i+1] is run i. Without
// indices neighbours of one sequence see the same rows; they must agree on the chunk length.
int64_t cut_tokens(const MlaSparseArgs& a, int64_t heads, int32_t* starts) {
  const int64_t most = a.indices != nullptr ? 1 : std::max<int64_t>(1, kMaxRows / heads);
  const TokenMap& m = a.tokens;
  int64_t count = 0, begin = 0;
  for (int64_t t = 0; t < m.num_tokens; ++t) {
    const bool joins = t > begin && t - begin < most && m.sequence[t] == m.sequence[begin] &&
                       m.position[t] >= m.position[t - 1] &&
                       chunk_entries(m.position[t] + 1) == chunk_entries(m.position[begin] + 1);
    if (t == 0 || !joins) {
      starts[count++] = static_cast<int32_t>(t);
      begin = t;
    }
  }
  starts[count] = static_cast<int32_t>(m.num_tokens);
  return count;
}

// Few tokens: the chunks of their lists are tasks of their own; partial results meet in the
// scratch memory of thread 0, [token][chunk][head] rows of sums and then states.
void run_split(KernelContext& context, const MlaSparseArgs& a, const Sizes& s, int64_t groups) {
  const int64_t tokens = a.tokens.num_tokens, group_heads = (a.heads + groups - 1) / groups;
  int64_t chunks = 1;
  for (int64_t t = 0; t < tokens; ++t) chunks = std::max(chunks, chunks_of(a, t));
  const int64_t rows = tokens * chunks * a.heads;
  float* acc = context.scratch(0, kPartials, rows * (s.cols + 2));
  auto* states = reinterpret_cast<RowState*>(acc + rows * s.cols);
  context.pool().run(tokens * chunks * groups, [&](int64_t i, int thread) {
    const int64_t t = i / groups / chunks, chunk = i / groups % chunks,
                  h0 = i % groups * group_heads;
    const Task task{t, t + 1, h0, std::min(h0 + group_heads, a.heads)};
    if (chunk >= chunks_of(a, t) || task.heads() <= 0) return;
    const Buffers b(context, thread, s, task.rows());
    load_queries(a, s, task, b.q);
    const int64_t row = (t * chunks + chunk) * a.heads + h0;
    attend_chunk(a, s, b, task, chunk, acc + row * s.cols, states + row);
  });
  for (int64_t i = 0; i < tokens * a.heads; ++i) {
    const int64_t t = i / a.heads, h = i % a.heads;
    const auto row = [&](int64_t chunk) { return (t * chunks + chunk) * a.heads + h; };
    for (int64_t c = 1; c < chunks_of(a, t); ++c) {
      merge_rows(acc + row(c) * s.cols, states[row(c)], s.cols, acc + row(0) * s.cols,
                 states + row(0));
    }
    finish_row(acc + row(0) * s.cols, states[row(0)], s.latent, output(a, t, h));
  }
}

void run(KernelContext& context, const MlaSparseArgs& a) {
  const Sizes s(a);
  const int64_t threads = context.pool().num_threads(), tokens = a.tokens.num_tokens;
  int64_t groups = (a.heads + kMaxRows - 1) / kMaxRows;
  if (tokens * groups < 4 * threads) {
    int64_t chunks = 0;
    for (int64_t t = 0; t < tokens; ++t) chunks += chunks_of(a, t);
    if (chunks * groups < threads) groups = std::min(threads, a.heads);
    return run_split(context, a, s, groups);
  }
  const int64_t group_heads = (a.heads + groups - 1) / groups;
  auto* starts = reinterpret_cast<int32_t*>(context.scratch(0, kStarts, tokens + 1));
  const int64_t runs = cut_tokens(a, group_heads, starts);
  context.pool().run(runs * groups, [&](int64_t i, int thread) {
    // From the end: with all positions visible the last tokens take longest.
    const int64_t r = runs - 1 - i / groups, h0 = i % groups * group_heads;
    const Task task{starts[r], starts[r + 1], h0, std::min(h0 + group_heads, a.heads)};
    if (task.heads() > 0) run_whole(context, thread, a, s, task);
  });
}

#endif  // HWY_SCALAR

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace tamis
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tamis {

HWY_EXPORT(run);

bool mla_sparse_simd_supports(const MlaSparseArgs& args) {
  return vectors_available() && args.mass == nullptr;
}

void mla_sparse_simd(KernelContext& context, const MlaSparseArgs& args) {
  if (args.round_bf16) return mla_sparse_rounded_simd(context, args);
  HWY_DYNAMIC_DISPATCH(run)(context, args);
}

}  // namespace tamis
#endif  // HWY_ONCE
