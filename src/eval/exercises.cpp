#include "eval/exercises.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <numeric>
#include <span>

#include "base/error.h"

namespace tamis {
namespace {

// Apart from the seeds of training, which are below 2^53, and of validation.
constexpr uint64_t kExam = 0x6578616DULL << 32;
constexpr size_t kRecognised = 3;  // tokens of an answer that are looked for before it

int64_t number_of(std::string_view text, std::string_view whole) {
  int64_t value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0 || value > 1 << 20) {
    throw UsageError("task '" + printable(whole) + "': want a number of 0 to 1048576, not '" +
                     printable(text) + "'");
  }
  return value;
}

// Tokens [first, last) of a sequence that are one answer.
struct Answer {
  int64_t first = 0, last = 0;
};

// Of the sequence [begin, end) of a batch. The end of text alone answers nothing.
std::vector<Answer> answers_of(const MicroBatch& batch, int64_t begin, int64_t end) {
  std::vector<Answer> list;
  for (int64_t t = begin; t < end; ++t) {
    if (batch.targets[static_cast<size_t>(t)] < 0) continue;
    if (!list.empty() && list.back().last == t + 1) {
      ++list.back().last;
    } else {
      list.push_back({t + 1, t + 2});
    }
  }
  std::erase_if(list, [&](const Answer& a) { return a.first + 1 == end; });
  return list;
}

// How far before the answer its first tokens stood last; 0 if nowhere.
int64_t look_back(std::span<const int32_t> ids, int64_t begin, const Answer& a) {
  const auto n = std::min<int64_t>(kRecognised, a.last - a.first);
  const auto wanted = ids.subspan(static_cast<size_t>(a.first), static_cast<size_t>(n));
  for (int64_t t = a.first - n; t >= begin; --t) {
    if (std::equal(wanted.begin(), wanted.end(), ids.begin() + t)) return a.first - t;
  }
  return 0;
}

}  // namespace

TaskSettings task_from_text(std::string_view text) {
  TaskSettings s;
  const size_t colon = std::min(text.find(':'), text.size());
  s.kind = task_from_name(text.substr(0, colon));
  const std::pair<std::string_view, int64_t*> keys[] = {
      {"keys", &s.keys},     {"values", &s.values},      {"queries", &s.queries},
      {"hops", &s.hops},     {"words", &s.words},        {"terms", &s.terms},
      {"digits", &s.digits}, {"syllables", &s.syllables}};
  for (std::string_view rest = text.substr(std::min(colon + 1, text.size())); !rest.empty();) {
    const size_t comma = std::min(rest.find(','), rest.size());
    const std::string_view setting = rest.substr(0, comma);
    rest.remove_prefix(std::min(comma + 1, rest.size()));
    const size_t equals = setting.find('=');
    const auto* key = std::find_if(std::begin(keys), std::end(keys), [&](const auto& k) {
      return equals != std::string_view::npos && k.first == setting.substr(0, equals);
    });
    if (key == std::end(keys)) {
      throw UsageError(
          "task '" + printable(text) + "': '" + printable(setting) +
          "': want keys, values, queries, hops, words, terms, digits or syllables = a number");
    }
    *key->second = number_of(setting.substr(equals + 1), text);
  }
  const auto want = [&](const char* name, int64_t value, int64_t least) {
    if (value < least) {
      throw UsageError(fmt::format("task '{}': {} is at least {}", printable(text), name, least));
    }
  };
  want("values", s.values, 1);
  want("queries", s.queries, 1);
  want("hops", s.hops, 0);
  want("words", s.words, 2);
  want("terms", s.terms, 2);
  if (s.digits > 9) throw UsageError("task '" + printable(text) + "': digits is at most 9");
  if (s.syllables > 4) throw UsageError("task '" + printable(text) + "': syllables is at most 4");
  return s;
}

class ExerciseGrader::Impl {
 public:
  Impl(KernelContext& context, const LoadedModel& model, const ExerciseOptions& options,
       int64_t length)
      : context_(context),
        model_(model),
        options_(options),
        selector_(make_selector(options.policy)),
        length_(length) {}

  ExerciseScore grade(const SyntheticTask& task, uint64_t seed, int64_t first, int64_t count,
                      FunctionRef<void(int64_t)> progress) {
    score_ = {};
    const int64_t a_pass = std::max<int64_t>(1, options_.batch_tokens / length_);
    for (int64_t done = 0; done < count; done += a_pass) {
      MicroBatch batch;
      std::vector<int64_t> ends;  // of the task's sequences, counted in the batch's
      for (int64_t i = done; i < std::min(count, done + a_pass); ++i) {
        task.append(seed ^ kExam, first + i, length_, batch);
        ends.push_back(batch.sequences());
      }
      forward(batch);
      mark(batch, ends);
      progress(static_cast<int64_t>(ends.size()));
    }
    return std::move(score_);
  }

 private:
  // The most likely next token of every token with a target, into best_.
  void forward(const MicroBatch& batch) {
    const auto n = static_cast<size_t>(batch.tokens());
    for (const int32_t id : batch.ids) {
      if (id < model_.config().vocab_size) continue;
      throw InputError(
          fmt::format("token id {}: the model's vocabulary has {}; want the tokenizer "
                      "that it was trained with",
                      id, model_.config().vocab_size));
    }
    reserve(batch);
    positions_.resize(n);
    sequence_.resize(n);
    tables_.clear();
    whole_.clear();
    const bool expanded = model_.model().options().precision == Precision::kNative;
    for (int64_t i = 0; i < batch.sequences(); ++i) {
      const int64_t begin = batch.begins[static_cast<size_t>(i)];
      const int64_t end = batch.begins[static_cast<size_t>(i) + 1];
      std::iota(positions_.begin() + begin, positions_.begin() + end, 0);
      std::fill(sequence_.begin() + begin, sequence_.begin() + end, static_cast<int32_t>(i));
      tables_.push_back({held_[static_cast<size_t>(i)].pages.data()});
      whole_.push_back({begin, end - begin, expanded});
    }
    rows_.clear();
    for (size_t t = 0; t < n; ++t) {
      if (batch.targets[t] >= 0) rows_.push_back(static_cast<int32_t>(t));
    }
    best_.resize(rows_.size());
    failed_.assign(whole_.size(), -1);
    Batch b;
    b.tokens = {batch.tokens(), sequence_.data(), positions_.data(), tables_.data()};
    b.ids = batch.ids.data();
    b.sequences = whole_;
    b.kv = cache_->view();
    b.logit_rows = rows_;
    b.best = best_.data();
    b.failed_layer = failed_.data();
    model_.model().forward(context_, b, *selector_, act_);
    for (CachedSequence& s : held_) cache_->release(s);
    for (const int32_t layer : failed_) {
      if (layer < 0) continue;
      throw InputError(fmt::format("layer {} gave a result that is not a finite number", layer));
    }
  }

  void reserve(const MicroBatch& batch) {
    int64_t pages = 0;
    for (int64_t i = 0; i < batch.sequences(); ++i) {
      pages += pages_for(batch.begins[static_cast<size_t>(i) + 1] -
                         batch.begins[static_cast<size_t>(i)]);
    }
    if (!cache_ || cache_->total_pages() < pages) {
      CacheOptions c = options_.cache;
      c.pages = pages;
      cache_ = std::make_unique<PagedCache>(model_.config(), c, context_.device());
    }
    held_.assign(static_cast<size_t>(batch.sequences()), {});
    for (int64_t i = 0; i < batch.sequences(); ++i) {
      cache_->reserve(held_[static_cast<size_t>(i)], batch.begins[static_cast<size_t>(i) + 1] -
                                                         batch.begins[static_cast<size_t>(i)]);
    }
  }

  void mark(const MicroBatch& batch, const std::vector<int64_t>& ends) {
    right_.assign(static_cast<size_t>(batch.tokens()) + 1, false);
    for (size_t r = 0; r < rows_.size(); ++r) {
      const auto t = static_cast<size_t>(rows_[r]);
      right_[t + 1] = best_[r] == batch.targets[t];
    }
    int64_t i = 0;
    for (const int64_t end : ends) {
      if (!score_.results.empty()) score_.results += ' ';
      for (; i < end; ++i) {
        mark(batch, batch.begins[static_cast<size_t>(i)], batch.begins[static_cast<size_t>(i) + 1]);
      }
      ++score_.sequences;
    }
    score_.tokens += batch.tokens();
  }

  void mark(const MicroBatch& batch, int64_t begin, int64_t end) {
    for (const Answer& a : answers_of(batch, begin, end)) {
      const auto right = std::count(right_.begin() + a.first, right_.begin() + a.last, true);
      const bool all = right == a.last - a.first;
      ++score_.answers;
      score_.right += all ? 1 : 0;
      score_.answer_tokens += a.last - a.first;
      score_.right_tokens += right;
      score_.results += all ? '1' : '0';
      const int64_t distance = look_back(batch.ids, begin, a);
      score_.stood += distance > 0 ? 1 : 0;
      score_.far += distance > options_.policy.topk ? 1 : 0;
    }
  }

  KernelContext& context_;
  const LoadedModel& model_;
  const ExerciseOptions options_;
  std::unique_ptr<Selector> selector_;
  int64_t length_;
  std::unique_ptr<PagedCache> cache_;
  std::vector<CachedSequence> held_;
  Activations act_;
  ExerciseScore score_;
  std::vector<int32_t> positions_, sequence_, rows_, best_, failed_;
  std::vector<KvSequence> tables_;
  std::vector<BatchSequence> whole_;
  std::vector<bool> right_;  // [tokens + 1]
};

ExerciseGrader::ExerciseGrader(KernelContext& context, const LoadedModel& model,
                               const ExerciseOptions& options, int64_t length) {
  if (length > model.config().max_position) {
    throw UsageError(fmt::format("context: the model has {} positions, got {}",
                                 model.config().max_position, length));
  }
  impl_ = std::make_unique<Impl>(context, model, options, length);
}

ExerciseGrader::~ExerciseGrader() = default;

ExerciseScore ExerciseGrader::grade(const SyntheticTask& task, uint64_t seed, int64_t first,
                                    int64_t count, FunctionRef<void(int64_t)> progress) {
  return impl_->grade(task, seed, first, count, progress);
}

}  // namespace tamis
