#include "kernels/cuda/bench_operands.h"
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/fp8.cuh"
#include "kernels/cuda/launch.cuh"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

constexpr int kThreads = 256;

unsigned blocks_of(int64_t n) {
  return static_cast<unsigned>(std::min<int64_t>((n + kThreads - 1) / kThreads, 1 << 16));
}

// 32 random bits of (i, seed): a finaliser of a 64-bit hash.
__device__ uint32_t random_bits(int64_t i, uint32_t seed) {
  auto x = static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15ULL + (uint64_t{seed} << 32 | seed);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return static_cast<uint32_t>(x >> 32 ^ x);
}

// Four bytes added up: mean 510, standard deviation 147.8.
__device__ float normal(int64_t i, uint32_t seed) {
  const uint32_t b = random_bits(i, seed);
  const uint32_t fine = random_bits(i, ~seed) & 0xFFFFu;
  const uint32_t sum = (b & 0xFFu) + (b >> 8 & 0xFFu) + (b >> 16 & 0xFFu) + (b >> 24);
  return (static_cast<float>(sum) + static_cast<float>(fine) * 0x1p-16f - 510.5f) / 147.8f;
}

__device__ uint32_t normal_bf16x2(int64_t i, uint32_t seed) {
  return float_to_bf16_bits(normal(2 * i, seed)) |
         static_cast<uint32_t>(float_to_bf16_bits(normal(2 * i + 1, seed))) << 16;
}

// Codes of values of standard deviation 64.
__device__ uint32_t normal_e4m3x4(int64_t i, uint32_t seed) {
  uint32_t word = 0;
  for (int k = 0; k < 4; ++k) {
    word |= static_cast<uint32_t>(float_to_e4m3_bits(64 * normal(4 * i + k, seed))) << (8 * k);
  }
  return word;
}

__global__ void fill_floats(float* x, int64_t n, uint32_t seed, bool narrow) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < n;
       i += gridDim.x * int64_t{kThreads}) {
    x[i] = narrow ? 100 + static_cast<float>(random_bits(i, seed)) * 0x1p-32f : normal(i, seed);
  }
}

__global__ void fill_selection(int32_t* x, int64_t tokens, int64_t k, const int32_t* position,
                               uint32_t seed) {
  const int64_t n = tokens * k;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < n;
       i += gridDim.x * int64_t{kThreads}) {
    const int64_t visible = position[i / k] + 1, c = i % k;
    const int64_t begin = c * visible / k, end = (c + 1) * visible / k;
    x[i] = visible <= k ? static_cast<int32_t>(c < visible ? c : -1)
                        : static_cast<int32_t>(begin + random_bits(i, seed) % (end - begin));
  }
}

// Words of four bytes of a weight, or of pages.
__global__ void fill_weight(uint32_t* x, int64_t words, bool fp8, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < words;
       i += gridDim.x * int64_t{kThreads}) {
    x[i] = fp8 ? normal_e4m3x4(i, seed) : normal_bf16x2(i, seed);
  }
}

struct PageWords {
  int64_t page, row, index;  // words of a page, of a latent row, before the index part
  int latent, scales;        // words of a row's codes and scales (FP8)
  int index_codes;           // words of the index part's codes (FP8)
  bool fp8, index_fp8;
};

__global__ void fill_pages(uint32_t* x, int64_t words, PageWords p, uint32_t seed) {
  const uint32_t scale = __float_as_uint(0x1p-6f);
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < words;
       i += gridDim.x * int64_t{kThreads}) {
    const int64_t at = i % p.page;
    if (at < p.index) {
      const int64_t in_row = at % p.row;
      const bool code = p.fp8 && in_row < p.latent;
      const bool is_scale = p.fp8 && !code && in_row < p.latent + p.scales;
      x[i] = code ? normal_e4m3x4(i, seed) : is_scale ? scale : normal_bf16x2(i, seed);
    } else if (p.index_fp8) {
      x[i] = at - p.index < p.index_codes ? normal_e4m3x4(i, seed) : scale;
    } else {
      x[i] = normal_bf16x2(i, seed);
    }
  }
}

DeviceArray<float> floats(KernelContext& context, int64_t n, uint32_t seed, bool narrow) {
  DeviceArray<float> x(context, n);
  fill_floats<<<blocks_of(n), kThreads, 0, stream_of(context)>>>(x.data(), n, seed, narrow);
  check_launch("fill_floats");
  return x;
}

std::vector<int32_t> shuffled(int64_t n) {
  std::vector<int32_t> pages(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {  // a prime above n has no factor in common with it
    pages[static_cast<size_t>(i)] = static_cast<int32_t>(i * 2654435761LL % n);
  }
  return pages;
}

std::vector<int32_t> token_list(int64_t sequences, int64_t context, int64_t tokens,
                                bool positions) {
  std::vector<int32_t> list;
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t t = 0; t < tokens; ++t) {
      list.push_back(static_cast<int32_t>(positions ? context - tokens + t : s));
    }
  }
  return list;
}

std::vector<KvSequence> sequence_views(const int32_t* pages, int64_t sequences, int64_t each) {
  std::vector<KvSequence> views;
  for (int64_t s = 0; s < sequences; ++s) views.push_back({pages + s * each});
  return views;
}

int64_t pages_of(int64_t context) { return (context + kPageTokens - 1) / kPageTokens; }

}  // namespace

DeviceArray<float> normal_floats(KernelContext& context, int64_t n, uint32_t seed) {
  return floats(context, n, seed, false);
}

DeviceArray<float> narrow_floats(KernelContext& context, int64_t n, uint32_t seed) {
  return floats(context, n, seed, true);
}

DeviceArray<int32_t> random_selection(KernelContext& context, int64_t tokens, int64_t k,
                                      const int32_t* position, uint32_t seed) {
  DeviceArray<int32_t> x(context, tokens * k);
  fill_selection<<<blocks_of(tokens * k), kThreads, 0, stream_of(context)>>>(x.data(), tokens, k,
                                                                             position, seed);
  check_launch("fill_selection");
  return x;
}

DeviceKv::DeviceKv(KernelContext& context, const KvLayout& layout, int64_t sequences,
                   int64_t context_length, int64_t tokens, uint32_t seed)
    : count(sequences * tokens),
      max_context(context_length),
      kv{layout, nullptr, layout.page_bytes()},
      bytes(context, sequences * pages_of(context_length) * layout.page_bytes()),
      pages(context, shuffled(sequences * pages_of(context_length))),
      sequence_of(context, token_list(sequences, context_length, tokens, false)),
      position(context, token_list(sequences, context_length, tokens, true)),
      views(context, sequence_views(pages.data(), sequences, pages_of(context_length))) {
  kv.base = bytes.data();
  const bool fp8 = layout.latent_format == KvFormat::kFP8;
  const PageWords p{layout.page_bytes() / 4,
                    layout.latent_row_bytes() / 4,
                    layout.index_offset() / 4,
                    static_cast<int>(layout.kv_lora / 4),
                    static_cast<int>((layout.kv_lora + 127) / 128),
                    static_cast<int>(kPageTokens * layout.index_dim / 4),
                    fp8,
                    layout.index_format == KvFormat::kFP8};
  const int64_t words = sequences * pages_of(context_length) * p.page;
  fill_pages<<<blocks_of(words), kThreads, 0, stream_of(context)>>>(
      reinterpret_cast<uint32_t*>(bytes.data()), words, p, seed);
  check_launch("fill_pages");
}

TokenMap DeviceKv::map() const {
  return {count, sequence_of.data(), position.data(), views.data(), max_context};
}

DeviceWeight::DeviceWeight(KernelContext& context, DType dtype, int64_t rows, int64_t cols,
                           uint32_t seed)
    : data(context, rows * cols * (dtype == DType::kF8E4M3 ? 1 : 2)),
      scales(context, ((rows + 127) / 128) * ((cols + 127) / 128) * 4) {
  const bool fp8 = dtype == DType::kF8E4M3;
  const int64_t words = rows * cols * (fp8 ? 1 : 2) / 4;
  const std::vector<float> ones(static_cast<size_t>(((rows + 127) / 128) * ((cols + 127) / 128)),
                                0x1p-6f);
  context.device()->upload(scales.data(), ones.data(), static_cast<int64_t>(ones.size()) * 4);
  fill_weight<<<blocks_of(words), kThreads, 0, stream_of(context)>>>(
      reinterpret_cast<uint32_t*>(data.data()), words, fp8, seed);
  check_launch("fill_weight");
  w.dtype = dtype;
  w.rows = rows;
  w.cols = cols;
  w.data = data.data();
  w.row_bytes = cols * (fp8 ? 1 : 2);
  w.scales = scales.data();
  w.scale_dtype = DType::kF32;
  w.scale_stride = (cols + 127) / 128;
}

}  // namespace tamis
