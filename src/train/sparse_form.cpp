#include "train/sparse_form.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/indexer_kl/indexer_kl.h"

namespace tamis {
namespace {

// How many multiply-adds over masked tiles take the time of one over gathered rows, on an H200
// (docs/performance/training.md). Up to 16 heads whole runs were measured: the mask was 1.6 times
// as fast where it did 9 times the work, in sequences whose documents were half as long. For more
// heads at DeepSeek-V3.2's shapes: the mask was faster with 0.59 times the work, at 8,192 tokens,
// gathering where the mask has 1.18 times, at 16,384.
constexpr double kGainOfFew = 8, kGainOfMany = 1.05;
constexpr int64_t kFewHeads = 16;  // a tile of the tensor cores

double as_double(int64_t x) { return static_cast<double>(x); }

}  // namespace

bool masked_is_faster(const ModelConfig& c, const Stage& s) {
  const double heads = as_double(c.num_heads);
  const double tiles = heads * as_double(s.length) / 2 * as_double(c.nope + c.rope + c.v_head);
  const double rows = std::max(heads, as_double(kFewHeads)) *
                      as_double(std::min(s.topk, s.length)) * as_double(2 * c.kv_lora + c.rope);
  return tiles < (c.num_heads <= kFewHeads ? kGainOfFew : kGainOfMany) * rows;
}

bool attends_masked(const KernelContext& context, const std::string& wanted, const ModelConfig& c,
                    const Stage& s) {
  if (wanted == "gather") return false;
  IndexerKlDenseArgs<float> shapes;
  shapes.indexer.heads = c.index_heads;
  shapes.indexer.dim = c.index_dim;
  shapes.attention.heads = c.num_heads;
  shapes.attention.nope = c.nope;
  shapes.attention.rope = c.rope;
  shapes.attention.v_dim = c.v_head;
  const bool supported = masked_attention_supported(context, shapes);
  if (wanted == "mask") {
    if (supported) return true;
    throw InputError(
        "run.sparse_form: mask needs heads of at most 192 values (128 of v, 128 of the indexer) "
        "and their tiles in the GPU's shared memory; want gather or auto");
  }
  return context.device() != nullptr && supported && masked_is_faster(c, s);
}

}  // namespace tamis
