// Float32 keys side by side are a paged cache without a latent part: page p starts at key 64 p.
#include "kernels/cuda/launch.cuh"
#include "kernels/indexer_select/indexer_select_impl.h"

namespace tamis {
namespace {

constexpr int kMap = 6;  // a slot of scratch memory that indexer_select leaves alone
constexpr int kThreads = 256;

// What a TokenMap points to: a sequence for each token, that of the page that its own begins with.
struct Map {
  KvSequence* sequences;
  int32_t *pages, *sequence_of, *position;
};

// A page starts at any row: page p is row p. A sequence's pages lie at its first row and after it.
__global__ void map_kernel(Map map, const int32_t* position, int64_t tokens) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (t >= tokens) return;
  const int64_t at = position == nullptr ? t : position[t], first = t - at;
  if (at % kPageTokens == 0) map.pages[first + at / kPageTokens] = static_cast<int32_t>(t);
  if (at == 0) map.sequences[t].pages = map.pages + t;
  map.sequence_of[t] = static_cast<int32_t>(first);
  map.position[t] = static_cast<int32_t>(at);
}

// Positions within a sequence become rows.
__global__ void rows_kernel(const int32_t* position, int64_t k, int64_t count, int32_t* indices) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count || indices[i] < 0) return;
  const int64_t t = i / k;
  indices[i] += static_cast<int32_t>(t) - position[t];
}

unsigned blocks_of(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

}  // namespace

void indexer_select_train_cuda(KernelContext& context, const IndexerSelectTrainArgs& args) {
  const int64_t n = args.tokens;
  if (n == 0) return;
  const int32_t* position = args.sequences.position;
  constexpr auto kEach = static_cast<int64_t>(sizeof(KvSequence));
  auto* memory = static_cast<std::byte*>(device_scratch(context, kMap, n * (kEach + 3 * 4)));
  auto* numbers = reinterpret_cast<int32_t*>(memory + n * kEach);
  const Map map{reinterpret_cast<KvSequence*>(memory), numbers, numbers + n, numbers + 2 * n};
  map_kernel<<<blocks_of(n), kThreads, 0, stream_of(context)>>>(map, position, n);
  check_launch("indexer_select_map");
  IndexerSelectArgs a;
  a.in.q = args.q;
  a.in.w = args.w;
  a.in.heads = args.heads;
  a.in.kv.layout = {0, 0, args.dim, KvFormat::kF32, KvFormat::kF32};
  a.in.kv.page_stride = args.dim * 4;
  // The operation reads its cache and never writes to it.
  a.in.kv.base = reinterpret_cast<std::byte*>(const_cast<float*>(args.keys));
  a.in.tokens = {n, map.sequence_of, map.position, map.sequences,
                 position == nullptr ? n : args.sequences.longest};
  a.k = args.k;
  a.indices = args.indices;
  indexer_select_cuda(context, a);
  if (position == nullptr) return;
  rows_kernel<<<blocks_of(n * args.k), kThreads, 0, stream_of(context)>>>(position, args.k,
                                                                          n * args.k, args.indices);
  check_launch("indexer_select_rows");
}

}  // namespace tamis
