// Guesses tokens ahead with the checkpoint's multi-token-prediction layer, for passes that check
// several tokens of a sequence at once.
//
//   drafter.follow(pass, slices, hidden, selector, activations);   // after a pass and its sampling
//   sequence.drafts;                                               // for the next pass
//
// The layer reads the main model's state of a token together with the token after it, and keeps
// entries of its own in the same pages: what a pass has put into the cache, follow() puts there for
// this layer. More than one guess comes from the same layer, fed with its own output; these
// entries are written again when the true states are known. Nothing here changes what a request
// gives: a wrong guess costs the time to check it.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/loaded_model.h"
#include "engine/paged_cache.h"
#include "engine/sequence.h"

namespace tamis {

class Drafter {
 public:
  // Guesses at most `tokens` for a sequence. UsageError if the model was loaded without the layer
  // or the cache has no place for it.
  Drafter(const LoadedModel& model, KernelContext& context, PagedCache& cache, int64_t tokens);

  // `pass`: sequences that shared a pass, of which `fed` tokens came into the cache, each followed
  // by a known token. slices: of that pass, by Sequence::slice; hidden [its tokens, hidden_size].
  // Sets `drafts` of all, empty where nothing is to follow. If it throws, drafts are empty and
  // constraints are where they were.
  void follow(std::span<Sequence* const> pass, std::span<const BatchSequence> slices,
              const float* hidden, const Selector& selector, Activations& act);

 private:
  struct Row {
    Sequence* sequence;
    size_t slice;   // of the drafting pass
    int64_t token;  // its last one there
  };

  void clear_batch();
  void begin_slice(const Sequence& s, int64_t tokens, bool expanded);
  void add(int32_t id, int64_t position, const float* hidden);
  void run(const Selector& selector, Activations& act);
  bool guess(const Row& row, size_t i);
  bool has_page(Sequence& s, int64_t position);

  const LoadedModel& model_;
  KernelContext& context_;
  PagedCache& cache_;
  int64_t tokens_;
  std::vector<std::pair<Matcher*, int32_t>> marks_;
  // The batch of a drafting pass; members so that a step allocates nothing.
  std::vector<Row> rows_, next_;
  std::vector<int32_t> ids_, sequence_, position_, logit_rows_, failed_;
  std::vector<KvSequence> tables_;
  std::vector<BatchSequence> slices_;
  std::vector<float> hidden_, out_, logits_;
  Sampler::Scratch scratch_;
  std::vector<uint64_t> allowed_;
};

}  // namespace tamis
