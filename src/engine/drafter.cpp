#include "engine/drafter.h"

#include "base/error.h"

namespace tamis {

Drafter::Drafter(const LoadedModel& model, KernelContext& context, PagedCache& cache,
                 int64_t tokens)
    : model_(model), context_(context), cache_(cache), tokens_(tokens) {
  if (tokens < 1 || tokens > kMaxSpeculation) {
    throw UsageError("speculative_tokens: want 1 to " + std::to_string(kMaxSpeculation));
  }
  if (model.weights().mtp.empty()) {
    throw UsageError("speculative_tokens: the multi-token-prediction layer is not loaded");
  }
  if (static_cast<int64_t>(cache.view().size()) <= model.config().num_layers()) {
    throw UsageError("speculative_tokens: the cache has no place for the layer's entries");
  }
}

void Drafter::clear_batch() {
  ids_.clear();
  sequence_.clear();
  position_.clear();
  logit_rows_.clear();
  tables_.clear();
  slices_.clear();
  hidden_.clear();
}

void Drafter::begin_slice(const Sequence& s, int64_t tokens, bool expanded) {
  slices_.push_back({static_cast<int64_t>(ids_.size()), tokens, expanded});
  tables_.push_back({s.cache.pages.data()});
}

void Drafter::add(int32_t id, int64_t position, const float* hidden) {
  ids_.push_back(id);
  position_.push_back(static_cast<int32_t>(position));
  sequence_.push_back(static_cast<int32_t>(slices_.size()) - 1);
  hidden_.insert(hidden_.end(), hidden, hidden + model_.config().hidden_size);
}

void Drafter::run(const Selector& selector, Activations& act) {
  const auto vocab = static_cast<size_t>(model_.config().vocab_size);
  if (logits_.size() < logit_rows_.size() * vocab) logits_.resize(logit_rows_.size() * vocab);
  if (out_.size() < hidden_.size()) out_.resize(hidden_.size());
  failed_.assign(slices_.size(), -1);
  Batch b;
  b.tokens = {static_cast<int64_t>(ids_.size()), sequence_.data(), position_.data(),
              tables_.data()};
  b.ids = ids_.data();
  b.sequences = slices_;
  b.kv = cache_.view();
  b.logit_rows = logit_rows_;
  b.logits = logits_.data();
  b.hidden = out_.data();
  b.failed_layer = failed_.data();
  model_.model().forward_mtp(context_, b, 0, hidden_.data(), selector, act);
}

// A further guess needs an entry at the place of the last one.
bool Drafter::has_page(Sequence& s, int64_t position) {
  return cache_.reserve(s.cache, position + 1 - s.cache.length);
}

// The next guess of one sequence, from the i-th row of logits. True if another may follow it.
bool Drafter::guess(const Row& row, size_t i) {
  Sequence& s = *row.sequence;
  if (failed_[row.slice] >= 0) return false;
  const auto ahead = static_cast<int64_t>(s.drafts.size());
  const int64_t vocab = model_.config().vocab_size;
  int32_t id = 0;
  try {
    id = s.sampler.guess(logits_.data() + i * static_cast<size_t>(vocab),
                         s.allowed(vocab, allowed_), scratch_, static_cast<uint64_t>(ahead));
  } catch (const InputError&) {
    return false;  // of the constraint; it ends the request when its turn comes
  }
  s.drafts.push_back(id);
  if (ahead + 1 >= std::min(tokens_, s.room() - 1) || s.is_stop(id)) return false;
  if (s.matcher && (!s.matcher->accept(id) || s.matcher->finished())) return false;
  return has_page(s, s.size() - 1 + ahead);
}

void Drafter::follow(std::span<Sequence* const> pass, std::span<const BatchSequence> slices,
                     const float* hidden, const Selector& selector, Activations& act) {
  const int64_t d = model_.config().hidden_size;
  const auto row_of = [d](const std::vector<float>& all, int64_t row) {
    return all.data() + row * d;
  };
  clear_batch();
  rows_.clear();
  marks_.clear();
  for (Sequence* s : pass) {
    s->drafts.clear();
    if (s->matcher) marks_.emplace_back(&*s->matcher, s->matcher->mark());
    const BatchSequence& of = slices[s->slice];
    const int64_t first = s->cache.length - s->fed;
    begin_slice(*s, s->fed, of.expanded);
    for (int64_t i = 0; i < s->fed; ++i) {
      add(s->tokens[static_cast<size_t>(first + i + 1)], first + i,
          hidden + (of.first_token + i) * d);
    }
    if (s->ended || !s->decoding() || s->room() < 2) continue;
    logit_rows_.push_back(static_cast<int32_t>(ids_.size()) - 1);
    rows_.push_back({s, slices_.size() - 1, static_cast<int64_t>(ids_.size()) - 1});
  }
  try {
    for (int64_t ahead = 0; !ids_.empty(); ++ahead) {
      run(selector, act);
      next_.clear();
      for (size_t i = 0; i < rows_.size(); ++i) {
        if (guess(rows_[i], i)) next_.push_back(rows_[i]);
      }
      rows_.swap(next_);
      clear_batch();
      for (Row& row : rows_) {
        Sequence& s = *row.sequence;
        begin_slice(s, 1, false);
        add(s.drafts.back(), s.size() - 1 + ahead, row_of(out_, row.token));
        row.slice = slices_.size() - 1;
        row.token = static_cast<int64_t>(ids_.size()) - 1;
        logit_rows_.push_back(static_cast<int32_t>(row.token));
      }
    }
  } catch (...) {
    for (const auto& [matcher, mark] : marks_) matcher->roll_back(mark);
    for (Sequence* s : pass) s->drafts.clear();
    throw;
  }
  for (const auto& [matcher, mark] : marks_) matcher->roll_back(mark);
}

}  // namespace tamis
