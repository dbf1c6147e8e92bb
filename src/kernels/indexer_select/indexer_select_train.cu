// Float32 keys side by side are a paged cache without a latent part: page p starts at key 64 p.
#include "kernels/cuda/launch.cuh"
#include "kernels/indexer_select/indexer_select_impl.h"

namespace tamis {
namespace {

constexpr int kMap = 6;  // a slot of scratch memory that indexer_select leaves alone
constexpr int kThreads = 256;

// What a TokenMap points to.
struct Map {
  KvSequence* sequence;
  int32_t *pages, *sequence_of, *position;
};

__global__ void map_kernel(Map map, int64_t tokens) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (t >= tokens) return;
  if (t == 0) map.sequence->pages = map.pages;
  map.pages[t] = static_cast<int32_t>(t);
  map.sequence_of[t] = 0;
  map.position[t] = static_cast<int32_t>(t);
}

}  // namespace

void indexer_select_train_cuda(KernelContext& context, const IndexerSelectTrainArgs& args) {
  const int64_t n = args.tokens;
  if (n == 0) return;
  constexpr int64_t kHeader = 256;
  auto* memory = static_cast<std::byte*>(device_scratch(context, kMap, kHeader + 3 * n * 4));
  auto* numbers = reinterpret_cast<int32_t*>(memory + kHeader);
  const Map map{reinterpret_cast<KvSequence*>(memory), numbers, numbers + n, numbers + 2 * n};
  map_kernel<<<static_cast<unsigned>((n + kThreads - 1) / kThreads), kThreads, 0,
               stream_of(context)>>>(map, n);
  check_launch("indexer_select_map");
  IndexerSelectArgs a;
  a.in.q = args.q;
  a.in.w = args.w;
  a.in.heads = args.heads;
  a.in.kv.layout = {0, 0, args.dim, KvFormat::kF32, KvFormat::kF32};
  a.in.kv.page_stride = a.in.kv.layout.page_bytes();
  // The operation reads its cache and never writes to it.
  a.in.kv.base = reinterpret_cast<std::byte*>(const_cast<float*>(args.keys));
  a.in.tokens = {n, map.sequence_of, map.position, map.sequence, n};
  a.k = args.k;
  a.indices = args.indices;
  indexer_select_cuda(context, a);
}

}  // namespace tamis
