#include "eval/plan.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <string>

#include "kernels/linear/linear.h"
#include "kernels/workloads/cuda_workloads.h"
#include "model/device_weights.h"

namespace tamis {
namespace {

// "Key:   123 kB" of a file of /proc, in bytes; 0 if it is not there.
int64_t kib_field(const char* path, const std::string& key) {
  std::ifstream in(path);
  std::string line;
  while (std::getline(in, line)) {
    if (line.rfind(key + ":", 0) == 0) {
      return std::strtoll(line.c_str() + key.size() + 1, nullptr, 10) * 1024;
    }
  }
  return 0;
}

int64_t dense_intermediate(const ModelConfig& c) {
  int64_t width = c.moe_intermediate * c.num_shared_experts;
  for (const LayerConfig& l : c.layers) {
    if (l.ffn == FfnKind::kDense) width = std::max(width, c.intermediate);
  }
  return width;
}

// The kernel maps a file 64 KiB around the page that was touched.
int64_t touched_embedding(const Weight& w, int64_t tokens) {
  constexpr double kAround = 65536;
  const auto bytes = static_cast<double>(w.bytes());
  const double windows = std::max(1.0, bytes / kAround);
  return static_cast<int64_t>(
      bytes * (1 - std::pow(1 - std::min(1.0, 1 / windows), static_cast<double>(tokens))));
}

// Quantised inputs of the largest call of linear_int8 for one token: the chosen experts and the
// shared one, the output projection, or the latents of all heads. Each value is an int16 and a 32nd
// of a scale.
int64_t int8_bytes_per_token(const ModelConfig& c, int ranks) {
  const int64_t d = c.hidden_size, heads = c.num_heads / ranks, k = c.experts_per_token;
  const int64_t values = std::max({(k + 1) * std::max(d, c.moe_intermediate), dense_intermediate(c),
                                   c.num_heads * c.v_head, heads * c.kv_lora});
  return values * 2 + values / 32 * 4;
}

// Scores of the positions for a block of tokens, and the tiles of the products.
int64_t scratch_bytes(const ModelConfig& c, const PlanOptions& o, int ranks, int64_t n) {
  constexpr int64_t kTiles = 1 << 20, kScoreRows = 16;
  const bool scores = o.policy.kind == AttentionKind::kSparse && o.context > c.index_topk;
  const int64_t rows = scores ? std::min(o.chunk, kScoreRows) + 1 : 0;
  const int64_t int8 = o.precision == Precision::kInt8 ? n * int8_bytes_per_token(c, ranks) : 0;
  return o.threads * (kTiles + rows * o.context * 4) + int8;
}

template <typename Work>
double best_seconds(int runs, const Work& work) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  for (int i = 0; i < runs; ++i) {
    const auto start = Clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

double roofline(double bytes, double flops, const MachineLimits& m) {
  return std::max(bytes / m.read_bytes_per_second, flops / m.flops);
}

}  // namespace

ProcessMemory process_memory() {
  constexpr const char* kStatus = "/proc/self/status";
  return {kib_field(kStatus, "VmHWM"), kib_field(kStatus, "RssAnon"),
          kib_field(kStatus, "RssFile")};
}

int64_t available_memory() { return kib_field("/proc/meminfo", "MemAvailable"); }

int64_t activation_bytes(const ModelConfig& c, const PlanOptions& o, int ranks, int64_t n) {
  const int64_t heads = c.num_heads / ranks, d = c.hidden_size, k = c.experts_per_token;
  const bool moe = std::any_of(c.layers.begin(), c.layers.end(),
                               [](const LayerConfig& l) { return l.ffn == FfnKind::kMoe; });
  const bool selects = o.policy.kind != AttentionKind::kDense;
  int64_t row = 3 * d + c.rope;                                    // stream, cos and sin
  row += c.q_lora + heads * c.qk_head() + 2 * c.kv_lora + c.rope;  // projections
  row += heads * (2 * c.kv_lora + c.v_head);                       // latents, o
  if (c.has_indexer()) row += c.index_dim;
  if (o.policy.kind == AttentionKind::kSparse && o.context > c.index_topk) {
    row += c.index_heads * (c.index_dim + 1);
  }
  if (selects) row += o.policy.topk;
  row += 2 * dense_intermediate(c) / ranks;
  if (moe) row += c.num_experts + 3 * k + 2 * k * d + 2 * k * c.moe_intermediate + d;
  if (ranks > 1) {
    row += c.num_heads * c.v_head + dense_intermediate(c);               // o_all, shared_all
    row += std::max(dense_intermediate(c), c.num_heads * c.v_head) + d;  // gathered, part
  }
  int64_t floats = n * row + o.batch * (d + c.vocab_size);  // and the head's rows and logits
  if (o.precision == Precision::kNative && n > o.batch) {   // the expanded form of a prefill
    floats += o.context * (c.kv_lora + 2 * c.rope + heads * (c.nope + c.v_head));
  }
  return floats * 4;
}

MemoryPlan plan_memory(const LoadedModel& model, const PlanOptions& o) {
  const ModelConfig& c = model.config();
  const ProcessMemory now = process_memory();
  const int64_t tokens = o.context * o.batch;
  MemoryPlan p;
  p.program = o.before_load.file + now.anonymous;
  // A step as large as the whole context touches what its tokens touch one after the other.
  p.weights = static_cast<int64_t>(
      decode_cost(c, model.weights(), o.policy, o.cache, 0, tokens).weight_bytes);
  if (!c.tie_word_embeddings) p.embedding = touched_embedding(model.weights().embed, tokens);
  for (const LayerConfig& layer : c.layers) {
    const KvLayout l = kv_layout_of(c, layer, o.cache.latent_format, o.cache.index_format);
    p.latent_per_token += l.latent_row_bytes();
    p.index_per_token += (l.page_bytes() - l.index_offset()) / kPageTokens;
  }
  const int64_t page = cache_page_bytes(c, o.cache);
  p.cache = page * pages_for(o.context) * o.batch;
  const int64_t pass = std::max(std::min(o.chunk, tokens), o.batch);
  p.activations = activation_bytes(c, o, model.group().size(), pass);
  p.scratch = scratch_bytes(c, o, model.group().size(), pass);
  const int64_t fixed = p.program + p.weights + p.embedding + p.activations + p.scratch;
  p.peak = std::max(now.peak, fixed + p.cache);
  const int64_t pages = std::max<int64_t>(0, available_memory() + now.anonymous - fixed) / page;
  p.largest_context = std::min(c.max_position, pages / o.batch * kPageTokens);
  return p;
}

DevicePlan plan_device_memory(const LoadedModel& model, const PlanOptions& o, int64_t available) {
  const int64_t pass = std::max(std::min(o.chunk, o.context * o.batch), o.batch);
  const int64_t page = cache_page_bytes(model.config(), o.cache);
  DevicePlan p;
  p.weights = device_weight_bytes(model.weights());
  p.cache = page * pages_for(o.context) * o.batch;
  p.activations = activation_bytes(model.config(), o, model.group().size(), pass) / 4 * 5;
  const int64_t pages = std::max<int64_t>(0, available - p.weights - p.activations) / page;
  p.largest_context = std::min(model.config().max_position, pages / o.batch * kPageTokens);
  return p;
}

MachineLimits probe_machine(KernelContext& context) {
  if (context.device() != nullptr) {
    const CudaPeak peak = measure_cuda_peak(context);
    // Of the bytes copied half are read.
    return {peak.bytes_per_second, peak.flops};
  }
  constexpr int64_t kCols = 4096, kRows = int64_t{1} << 14, kSide = 512, kTokens = 256;
  // Any bits that are ordinary numbers: 0x3c3c is bf16 0.0115.
  std::vector<std::byte> memory(static_cast<size_t>(kRows * kCols * 2), std::byte{0x3c});
  Weight w;
  w.data = memory.data();
  w.dtype = DType::kBF16;
  w.rows = kRows;
  w.cols = kCols;
  w.row_bytes = kCols * 2;
  std::vector<float> x(static_cast<size_t>(kTokens * kSide), 0.5F);
  x.resize(std::max<size_t>(x.size(), static_cast<size_t>(kCols)));
  std::vector<float> y(static_cast<size_t>(std::max(kRows, kTokens * kSide)));
  MachineLimits m;
  const double read = best_seconds(4, [&] {
    linear(context, {x.data(), kCols, 1, w, y.data(), kRows});
  });
  m.read_bytes_per_second = static_cast<double>(kRows * kCols * 2) / read;
  w.rows = w.cols = kSide;
  w.row_bytes = kSide * 2;
  const double product = best_seconds(8, [&] {
    linear(context, {x.data(), kSide, kTokens, w, y.data(), kSide});
  });
  m.flops = 2.0 * static_cast<double>(kTokens * kSide * kSide) / product;
  return m;
}

double predicted_step(const LoadedModel& model, const PlanOptions& o, const MachineLimits& limits,
                      AttentionKind attention, int64_t depth) {
  SelectionPolicy policy = o.policy;
  policy.kind = attention;
  const auto cost = [&](int64_t at) {
    return decode_cost(model.config(), model.weights(), policy, o.cache, at, o.batch);
  };
  const StepCost first = cost(0), all = cost(depth);
  return roofline(first.weight_bytes, first.flops, limits) +
         roofline(all.cache_bytes, all.flops - first.flops, limits);
}

int64_t crossover_depth(const LoadedModel& model, const PlanOptions& o,
                        const MachineLimits& limits) {
  if (!model.config().has_indexer()) return -1;
  const auto wins = [&](int64_t depth) {
    return predicted_step(model, o, limits, AttentionKind::kSparse, depth) <
           predicted_step(model, o, limits, AttentionKind::kDense, depth);
  };
  // Up to top-k both read the same. Then scores cost less a position than attention, so once
  // ahead, sparse stays ahead.
  int64_t low = 0, high = model.config().max_position;
  if (!wins(high)) return -1;
  while (low + 1 < high) {
    const int64_t middle = low + (high - low) / 2;
    (wins(middle) ? high : low) = middle;
  }
  return high;
}

}  // namespace tamis
