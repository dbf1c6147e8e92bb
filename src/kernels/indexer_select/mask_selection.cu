// Bits come together in shared memory, for 32 tokens and up to 64 words at a time; a warp a tile of
// tokens then says which tiles of keys they meet. Atomic operations on bits alone, so the order of
// the selection does not matter. Bound by reading it.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/indexer_select/indexer_select_impl.h"

namespace tamis {
namespace {

constexpr int kTokens = 32, kWords = 64, kThreads = 256;

__device__ inline int64_t position_of(const MaskSelectionArgs& a, int64_t t) {
  return a.sequences.position == nullptr ? t : a.sequences.position[t];
}

__global__ void __launch_bounds__(kThreads) bits_kernel(const MaskSelectionArgs a) {
  __shared__ unsigned long long words[kWords][kTokens];
  const int64_t t0 = int64_t{blockIdx.x} * kTokens, w0 = int64_t{blockIdx.y} * kWords;
  const auto thread = static_cast<int>(threadIdx.x), k = static_cast<int>(a.k);
  const auto count = static_cast<int>(min(int64_t{kTokens}, a.tokens - t0));
  for (int i = thread; i < kWords * kTokens; i += kThreads) words[i / kTokens][i % kTokens] = 0;
  __syncthreads();
  for (int i = thread; i < count * k; i += kThreads) {
    const int64_t t = t0 + i / k;
    const int32_t row = a.indices[t0 * k + i];
    if (row < 0) continue;
    const int64_t s = row - (t - position_of(a, t)), w = s / 64 - w0;
    if (w >= 0 && w < kWords) atomicOr(&words[w][i / k], 1ull << (s % 64));
  }
  __syncthreads();
  for (int i = thread; i < kWords * kTokens; i += kThreads) {
    const int w = i / kTokens, t = i % kTokens;
    if (w0 + w < a.words && t < count) a.bits[(w0 + w) * a.stride + t0 + t] = words[w][t];
  }
}

__global__ void __launch_bounds__(kThreads) tiles_kernel(const MaskSelectionArgs a) {
  const int64_t t = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  if (t >= a.tokens) return;
  const int64_t position = position_of(a, t);
  if (position % 64 != 0) return;
  const auto of_tile = [&](int64_t row) {
    return t + row < a.tokens && position_of(a, t + row) == position + row;
  };
  const bool first = of_tile(lane), second = of_tile(lane + 32);
  for (int64_t w0 = 0; w0 < a.words; w0 += 64) {
    uint64_t met = 0;
    for (int64_t w = w0; w < min(w0 + 64, min(a.words, position / 64 + 1)); ++w) {
      const uint64_t* word = a.bits + w * a.stride + t;
      const bool own = (first && word[lane] != 0) || (second && word[lane + 32] != 0);
      if (__any_sync(0xFFFFFFFFu, own)) met |= uint64_t{1} << (w % 64);
    }
    if (lane == 0) a.bits[(a.words + w0 / 64) * a.stride + t] = met;
  }
}

unsigned blocks(int64_t n, int64_t each) { return static_cast<unsigned>((n + each - 1) / each); }

}  // namespace

void mask_tiles_cuda(KernelContext& context, const MaskSelectionArgs& args) {
  tiles_kernel<<<blocks(args.tokens * 32, kThreads), kThreads, 0, stream_of(context)>>>(args);
  check_launch("mask_selection (tiles)");
}

void mask_selection_cuda(KernelContext& context, const MaskSelectionArgs& args) {
  if (args.tokens == 0) return;
  bits_kernel<<<dim3(blocks(args.tokens, kTokens), blocks(args.words, kWords)), kThreads, 0,
                stream_of(context)>>>(args);
  check_launch("mask_selection (bits)");
  mask_tiles_cuda(context, args);
}

}  // namespace tamis
