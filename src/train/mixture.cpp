#include "train/mixture.h"

#include <fmt/format.h>

#include "base/error.h"
#include "checkpoint/checksum.h"
#include "train/random.h"

namespace tamis {

Mixture::Mixture(const std::vector<SourceSpec>& sources, const std::string& tokenizer,
                 ShardCache& shards)
    : specs_(sources), tokenizer_(tokenizer_checksum(tokenizer)) {
  std::optional<Tokenizer> loaded;
  const auto load = [&]() -> const Tokenizer& {
    if (!loaded) loaded = Tokenizer::load(tokenizer + "/tokenizer.json");
    return *loaded;
  };
  for (const SourceSpec& spec : specs_) {
    Source source;
    if (spec.task) {
      try {
        source.task = std::make_unique<SyntheticTask>(*spec.task, load(), kEndToken);
      } catch (const UsageError& e) {
        throw InputError(e.what());
      }
      vocab_size_ = std::max(vocab_size_, load().vocab_size());
    } else {
      std::shared_ptr<const TokenData>& data = shards[spec.shards];
      if (!data) data = std::make_shared<TokenData>(spec.shards);
      if (data->tokenizer() != tokenizer_) {
        throw InputError(spec.shards + ": made with another tokenizer than " + tokenizer +
                         "/tokenizer.json; build it again with this one");
      }
      source.shards = data;
      vocab_size_ = std::max(vocab_size_, data->vocab_size());
    }
    list_.push_back(std::move(source));
    total_ += spec.weight;
  }
}

size_t Mixture::source_of(uint64_t seed, int64_t number) const {
  // A stream apart from those that the sources draw from.
  constexpr uint64_t kMixture = 0x6D69780000ULL;
  double left = Random(seed ^ kMixture, static_cast<uint64_t>(number)).unit() * total_;
  size_t i = 0;
  while (i + 1 < list_.size() && left >= specs_[i].weight) left -= specs_[i++].weight;
  return i;
}

void Mixture::Source::append(uint64_t seed, int64_t number, int64_t length, bool answers_only,
                             MicroBatch& batch) const {
  if (task) return task->append(seed, number, length, batch);
  if (answers_only) return shards->append_documents(seed, number, length, batch);
  shards->append(seed, number, length, batch);
}

void Mixture::append(uint64_t seed, int64_t number, int64_t length, bool answers_only,
                     MicroBatch& batch) const {
  append_from(source_of(seed, number), seed, number, length, answers_only, batch);
}

void Mixture::append_from(size_t index, uint64_t seed, int64_t number, int64_t length,
                          bool answers_only, MicroBatch& batch) const {
  list_[index].append(seed, number, length, answers_only || specs_[index].answers, batch);
}

void Mixture::check(uint64_t seed, int64_t length, bool answers_only) const {
  for (size_t i = 0; i < list_.size(); ++i) {
    const Source& source = list_[i];
    const bool answers = answers_only || specs_[i].answers;
    if (source.shards && length >= source.shards->tokens()) {
      throw InputError(fmt::format("sequences of {} tokens, {} has {}", length, specs_[i].shards,
                                   source.shards->tokens()));
    }
    if (source.shards && answers && !source.shards->has_answers()) {
      throw InputError(specs_[i].shards +
                       ": no answers are marked in it; `tamis data build --chat` makes such a "
                       "folder from conversations");
    }
    MicroBatch batch;
    try {
      source.append(seed, 0, length, answers, batch);
    } catch (const UsageError& e) {
      throw InputError(e.what());
    }
  }
}

int64_t Mixture::tokens() const {
  int64_t total = 0;
  for (const Source& s : list_) total += s.shards ? s.shards->tokens() : 0;
  return total;
}

int64_t Mixture::vocab_size() const { return vocab_size_; }

std::string Mixture::checksum() const {
  if (list_.size() == 1 && list_[0].shards && !specs_[0].answers) {
    return list_[0].shards->checksum();
  }
  std::string text = tokenizer_;
  for (size_t i = 0; i < list_.size(); ++i) {
    text += fmt::format("\n{}", specs_[i].weight);
    if (list_[i].shards) {
      text += list_[i].shards->checksum();
      if (specs_[i].answers) text += " answers";
      continue;
    }
    const TaskSettings& t = *specs_[i].task;
    text +=
        fmt::format("{} {} {} {} {} {} {} {} {}", task_name(t.kind), t.keys, t.values, t.queries,
                    t.hops, t.words, t.terms, t.digits == 0 ? 3 : t.digits, t.min_length);
    if (t.syllables > 0) text += fmt::format(" {}", t.syllables);
  }
  return checksum_hex(std::as_bytes(std::span(text)));
}

}  // namespace tamis
