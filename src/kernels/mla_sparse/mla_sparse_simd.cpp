// Attention over a selection, vectorised. docs/kernels/mla_sparse.md has the design in prose.
//
// A token's list is cut into chunks of fixed length, a chunk into tiles of 64 positions. A tile's
// rows are turned to float once and serve every head of the task, and neighbouring tokens that
// attend to all they see. Chunks start from nothing and are merged in order, so that threads may
// share one token's list without changing a bit.
#include <type_traits>

#include "kernels/simd/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/mla_sparse/mla_sparse_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
// foreach_target.h reads this file once per instruction set: what follows is not in alphabetical
// order on purpose.
#include "hwy/highway.h"
#include "kernels/mla_sparse/mla_sparse_impl.h"
#include "kernels/mla_sparse/mla_sparse_int16-inl.h"
#include "kernels/mla_sparse/mla_sparse_rows-inl.h"
#include "kernels/simd/panels-inl.h"
#include "kernels/simd/softmax-inl.h"

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

bool uses_int16(const MlaSparseArgs& a, const List& list) {
  return a.int16 && list.length >= kFewestInt16Entries;
}

// Fewer rows, or a shorter list, do not pay for turning keys into panels.
constexpr int64_t kPanelRows = kTileRows, kPanelEntries = kTile;

// A task's sums of values are [blocks of columns][rows][kValueBlock]: a register tile after the
// other is one stream.
int64_t block_stride(const Task& task) { return task.rows() * kValueBlock; }
int64_t sum_width(const Sizes& s) { return round_up(s.cols, kValueBlock); }  // floats a row

// Where the entries of a tile come from, for the prefetch of the next one.
struct Source {
  const KvSequence* seq;
  List list;
  int64_t begin;
};

// Scratch memory of a thread for the tiles of a task. With int16 there is room for both kinds, so
// that a list that grows past kFewestInt16Entries asks for no more.
struct TileRoom {
  TileRoom(KernelContext& context, int thread, const MlaSparseArgs& a, const Sizes& s,
           int64_t rows) {
    int64_t q_floats = rows * s.dim, scores_floats = rows * (kTile + 1);
    int64_t tile_floats = kTile * s.row_stride + panel_floats(kTile, s.dim);
    if (a.int16) {
      const IntSizes sizes(a);
      q_floats = std::max(q_floats, IntBuffers::q_floats(sizes, rows));
      tile_floats = std::max(tile_floats, IntBuffers::tile_floats(sizes));
      scores_floats = std::max(scores_floats, IntBuffers::score_floats(rows));
    }
    q = context.scratch(thread, kQ, q_floats);
    tile = context.scratch(thread, kRows, tile_floats);
    scores = context.scratch(thread, kScores, scores_floats);
  }
  float *q, *tile, *scores;
};

struct FloatTiles {
  FloatTiles(const MlaSparseArgs& a, const Sizes& s, const Task& task, const TileRoom& room)
      : use_panels(task.rows() >= kPanelRows && list_of(a, task.t1 - 1).length >= kPanelEntries),
        q(room.q),
        tile(room.tile),
        panels(tile + kTile * s.row_stride),
        scores(room.scores),
        alpha(scores + task.rows() * kTile) {
    load_queries(a, s, task, q);
    if (use_panels) order_queries(q, task.rows(), s.dim, panels);
  }
  bool use_panels;
  float *q, *tile, *panels, *scores, *alpha;
};

// Scores of rows [from, rows) of the task with the n entries of the tile at source.begin. The next
// tile's rows are asked for between blocks of this one: their latency hides behind the arithmetic.
void score_tile(const MlaSparseArgs& a, const Sizes& s, const FloatTiles& b, int64_t from,
                int64_t rows, int64_t n, const Source& source) {
  const auto fetch = [&](int64_t i, int64_t count) {
    const int64_t next = source.begin + kTile + i;
    prefetch_rows(a, *source.seq, source.list, next, next + count);
  };
  if (b.use_panels) {
    fill_panels(b.tile, s.row_stride, n, s.dim, b.panels);
    return dot_panels(b.q, from, rows, b.panels, n, s.dim, b.scores, kTile,
                      [&](int64_t i) { fetch(i, kPanelKeys); });
  }
  constexpr int64_t kBlock = 8;
  for (int64_t i = 0; i < n; i += kBlock) {
    fetch(i, kBlock);
    dot_rows(b.q + from * s.dim, s.dim, rows - from, b.tile + i * s.row_stride, s.row_stride,
             std::min(kBlock, n - i), s.dim, b.scores + from * kTile + i, kTile);
  }
}

// The tokens of a task from `first` on against the tile at source.begin, which holds n entries of
// the longest list.
void attend_tile(const MlaSparseArgs& a, const Sizes& s, const FloatTiles& b, const Task& task,
                 int64_t first, int64_t n, const Source& source, float* acc, RowState* states) {
  const int64_t heads = task.heads(), from = first * heads;
  score_tile(a, s, b, from, task.rows(), n, source);
  const auto seen = [&](int64_t t) {
    return std::min(n, list_of(a, task.t0 + t).length - source.begin);
  };
  for (int64_t r = from; r < task.rows(); ++r) {
    b.alpha[r] = softmax_tile(b.scores + r * kTile, seen(r / heads), states + r);
  }
  // Values: together as far as all see, then token by token.
  const int64_t common = seen(first);
  value_rows(b.scores + from * kTile, kTile, task.rows() - from, b.tile, s.row_stride, common,
             s.latent, b.alpha + from, acc + from * kValueBlock, kValueBlock, block_stride(task));
  for (int64_t t = first + 1; t < task.t1 - task.t0; ++t) {
    value_rows(b.scores + t * heads * kTile + common, kTile, heads, b.tile + common * s.row_stride,
               s.row_stride, seen(t) - common, s.latent, nullptr, acc + t * heads * kValueBlock,
               kValueBlock, block_stride(task));
  }
}

// act(first, n, source) for each tile of chunk `chunk` of the task's lists: n entries of the
// longest list; tokens before `first` see none of them.
template <typename Act>
void each_tile(const MlaSparseArgs& a, const Task& task, int64_t chunk, const Act& act) {
  const KvSequence& seq = a.tokens.sequences[a.tokens.sequence[task.t0]];
  const List longest = list_of(a, task.t1 - 1);
  const int64_t entries = chunk_entries(longest.length);
  const int64_t end = std::min((chunk + 1) * entries, longest.length);
  for (int64_t begin = chunk * entries; begin < end; begin += kTile) {
    int64_t first = 0;
    while (list_of(a, task.t0 + first).length <= begin) ++first;
    act(first, std::min(kTile, end - begin), Source{&seq, longest, begin});
  }
}

// As FloatTiles, with products of integers.
struct IntTiles {
  IntTiles(const MlaSparseArgs& a, const Sizes&, const Task& task, const TileRoom& room)
      : sizes(a), buffers(sizes, task.rows(), room.q, room.tile, room.scores) {
    load_int_queries(a, sizes, task, buffers);
  }
  IntSizes sizes;
  IntBuffers buffers;
};

// Chunk `chunk` of the task's lists, from nothing: acc as above, states [rows].
void attend_chunk(const MlaSparseArgs& a, const Sizes& s, const FloatTiles& b, const Task& task,
                  int64_t chunk, float* acc, RowState* states) {
  std::fill(acc, acc + task.rows() * sum_width(s), 0.0f);
  std::fill(states, states + task.rows(), RowState());
  each_tile(a, task, chunk, [&](int64_t first, int64_t n, const Source& source) {
    load_tile(a, s, *source.seq, source.list, source.begin, n, b.tile);
    attend_tile(a, s, b, task, first, n, source, acc, states);
  });
}

// The same with integers, group after group of tiles. With `merged`, which is the rows' state so
// far, the chunk is one group and is merged into acc.
void attend_int_chunk(const MlaSparseArgs& a, const IntTiles& t, const Task& task, int64_t chunk,
                      float* acc, RowState* states, RowState* merged) {
  const IntBuffers& b = t.buffers;
  const int64_t rows = task.rows(), heads = task.heads();
  std::fill(states, states + rows, RowState());
  int64_t tiles = 0, entries = 0, from = 0, begin = 0;  // of the group
  bool starts = true;
  const auto finish = [&] {
    for (int64_t r = from; r < rows; ++r) {
      const int64_t seen = std::min(entries, list_of(a, task.t0 + r / heads).length - begin);
      const float alpha = weigh_int_row(b, r, seen, entries, states + r);
      b.factors[r] =
          merged != nullptr ? merge_states(states[r], merged + r) : MergeFactors{alpha, 1.0F};
    }
    sum_int_group(t.sizes, b, entries, from, rows, merged != nullptr || !starts, acc);
    tiles = entries = 0;
    starts = false;
  };
  each_tile(a, task, chunk, [&](int64_t first, int64_t n, const Source& source) {
    const auto fetch = [&](int64_t k) {
      const int64_t next = source.begin + kTile + k;
      prefetch_rows(a, *source.seq, source.list, next, next + kPanelKeys);
    };
    if (tiles == 0) {
      from = first * heads;
      begin = source.begin;
    }
    load_int_tile(a, t.sizes, *source.seq, source.list, source.begin, n, tiles, b);
    score_int_tile(t.sizes, b, tiles, first * heads, rows, n, fetch);
    entries += n;
    if (++tiles == kGroupTiles) finish();
  });
  if (tiles > 0) finish();
}

void attend_chunk(const MlaSparseArgs& a, const Sizes&, const IntTiles& b, const Task& task,
                  int64_t chunk, float* acc, RowState* states) {
  attend_int_chunk(a, b, task, chunk, acc, states, nullptr);
}

int64_t chunks_of(const MlaSparseArgs& a, int64_t t) {
  const int64_t length = list_of(a, t).length, entries = chunk_entries(length);
  return (length + entries - 1) / entries;
}

float* output(const MlaSparseArgs& a, int64_t t, int64_t h) {
  return a.out + (t * a.heads + h) * a.kv.layout.kv_lora;
}

// Merges chunk `chunk` of the task into acc and states. next, next_states: room.
template <typename Tiles>
void add_chunk(const MlaSparseArgs& a, const Sizes& s, const Tiles& b, const Task& task,
               int64_t chunk, float* acc, RowState* states, float* next, RowState* next_states) {
  if constexpr (std::is_same_v<Tiles, IntTiles>) {
    if (chunk_entries(list_of(a, task.t1 - 1).length) <= kInt16Group) {
      return attend_int_chunk(a, b, task, chunk, acc, next_states, states);
    }
  }
  attend_chunk(a, s, b, task, chunk, next, next_states);
  for (int64_t r = 0; r < task.rows(); ++r) {
    if (chunk < chunks_of(a, task.t0 + r / task.heads())) {
      merge_rows(next + r * kValueBlock, next_states[r], s.cols, acc + r * kValueBlock,
                 block_stride(task), states + r);
    }
  }
}

// A task by one thread: chunk after chunk.
template <typename Tiles>
void run_whole(KernelContext& context, int thread, const MlaSparseArgs& a, const Sizes& s,
               const Task& task) {
  const int64_t rows = task.rows(), heads = task.heads();
  const Tiles b(a, s, task, TileRoom(context, thread, a, s, rows));
  float* acc = context.scratch(thread, kAcc, rows * sum_width(s));
  float* next = context.scratch(thread, kChunkAcc, rows * sum_width(s));
  auto* states = reinterpret_cast<RowState*>(context.scratch(thread, kStates, 4 * rows));
  RowState* next_states = states + rows;
  attend_chunk(a, s, b, task, 0, acc, states);
  const int64_t chunks = chunks_of(a, task.t1 - 1);
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    add_chunk(a, s, b, task, chunk, acc, states, next, next_states);
  }
  for (int64_t r = 0; r < rows; ++r) {
    float* out = output(a, task.t0 + r / heads, task.h0 + r % heads);
    finish_row(acc + r * kValueBlock, block_stride(task), states[r], s.latent, out);
  }
}

// Cuts the tokens into runs that can share tiles; starts[i] .. starts[i+1] is run i. Neighbours of
// one sequence that attend to all they see have the same rows; they must agree on the chunk length
// and on integers.
// Runs stay so short that there are eight tasks for each thread.
int64_t cut_tokens(const MlaSparseArgs& a, int64_t heads, int64_t threads, int32_t* starts) {
  constexpr int64_t kTasksPerThread = 8, kSharedRows = 192;
  const int64_t groups = (a.heads + heads - 1) / heads;
  const int64_t most =
      std::min(kSharedRows / heads, a.tokens.num_tokens * groups / (kTasksPerThread * threads));
  const TokenMap& m = a.tokens;
  int64_t count = 0, begin = 0;
  List previous;
  for (int64_t t = 0; t < m.num_tokens; ++t) {
    const List list = list_of(a, t);
    const bool joins = t > begin && t - begin < most && m.sequence[t] == m.sequence[begin] &&
                       previous.indices == nullptr && list.indices == nullptr &&
                       list.length >= previous.length &&
                       uses_int16(a, list) == uses_int16(a, previous) &&
                       chunk_entries(list.length) == chunk_entries(m.position[begin] + 1);
    previous = list;
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
  const int64_t width = sum_width(s);
  float* acc = context.scratch(0, kPartials, rows * (width + 2));
  auto* states = reinterpret_cast<RowState*>(acc + rows * width);
  context.pool().run(tokens * chunks * groups, [&](int64_t i, int thread) {
    const int64_t t = i / groups / chunks, chunk = i / groups % chunks,
                  h0 = i % groups * group_heads;
    const Task task{t, t + 1, h0, std::min(h0 + group_heads, a.heads)};
    if (chunk >= chunks_of(a, t) || task.heads() <= 0) return;
    const TileRoom room(context, thread, a, s, task.heads());
    const int64_t row = (t * chunks + chunk) * a.heads + h0;
    const auto attend = [&](const auto& tiles) {
      attend_chunk(a, s, tiles, task, chunk, acc + row * width, states + row);
    };
    uses_int16(a, list_of(a, t)) ? attend(IntTiles(a, s, task, room))
                                 : attend(FloatTiles(a, s, task, room));
  });
  for (int64_t i = 0; i < tokens * a.heads; ++i) {
    const int64_t t = i / a.heads, h = i % a.heads, h0 = h / group_heads * group_heads;
    const int64_t stride = std::min(group_heads, a.heads - h0) * kValueBlock;
    const auto row = [&](int64_t chunk) { return (t * chunks + chunk) * a.heads + h; };
    const auto sums = [&](int64_t chunk) {
      return acc + (row(chunk) - h + h0) * width + (h - h0) * kValueBlock;
    };
    for (int64_t c = 1; c < chunks_of(a, t); ++c) {
      merge_rows(sums(c), states[row(c)], s.cols, sums(0), stride, states + row(0));
    }
    finish_row(sums(0), stride, states[row(0)], s.latent, output(a, t, h));
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
  const int64_t runs = cut_tokens(a, group_heads, threads, starts);
  context.pool().run(runs * groups, [&](int64_t i, int thread) {
    // From the end: with all positions visible the last tokens take longest.
    const int64_t r = runs - 1 - i / groups, h0 = i % groups * group_heads;
    const Task task{starts[r], starts[r + 1], h0, std::min(h0 + group_heads, a.heads)};
    if (task.heads() <= 0) return;
    uses_int16(a, list_of(a, task.t0)) ? run_whole<IntTiles>(context, thread, a, s, task)
                                       : run_whole<FloatTiles>(context, thread, a, s, task);
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
