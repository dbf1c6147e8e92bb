// Exercises made from a seed: what a text rarely asks of a model and an evaluation of long context
// always does. An exercise is a prompt and its answer, with a loss on the answer alone and on the
// end-of-text token after it.
//
//   recall      "bado = 7301" lines, then for some of the keys "bado? 7301" (MQAR, arXiv
//               2312.04927)
//   needle      sentences with lines "The code of bado is 7301." among them, then "The code of
//               bado? 7301"; with more keys, values of a key and queries: RULER's needles
//   variables   chains "let bado = 7301", "let kire = bado" among sentences, then "Which are 7301?
//               bado kire" (RULER's variable tracking, arXiv 2404.06654)
//   copy        words, a bar, and the same words
//   induction   words without repetition, a bar, one of them; then the word that followed it
//   arithmetic  "37 + 5 - 12 = 42 - 12 = 30": sums with their working
//
// Keys are words of two to four syllables drawn from the seed; an exercise has no key twice. Fewer
// syllables, digits and keys make exercises that are learned sooner.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"
#include "train/model.h"

namespace tamis {

class Random;

enum class TaskKind : uint8_t { kRecall, kNeedle, kVariables, kCopy, kInduction, kArithmetic };
TaskKind task_from_name(std::string_view name);  // UsageError lists the names
std::string_view task_name(TaskKind kind);

struct TaskSettings {
  TaskKind kind = TaskKind::kRecall;
  int64_t keys = 0;        // recall: lines at most, 0: as many as fit; needle: needles; variables:
                           // chains
  int64_t values = 1;      // needle: lines of each key
  int64_t queries = 1;     // recall, needle: keys that are asked for
  int64_t hops = 2;        // variables: links of a chain after its first
  int64_t words = 16;      // copy, induction: at most
  int64_t terms = 4;       // arithmetic: at most
  int64_t digits = 0;      // recall, needle, variables: of a value; arithmetic: of a term, at most;
                           // 0: 4, variables 5, arithmetic 3
  int64_t syllables = 0;   // of a word; 0: two to four
  int64_t min_length = 0;  // tokens of an exercise with a long prompt; 0: all of the sequence
};

class SyntheticTask {
 public:
  // InputError if the tokenizer lacks `end_token`; UsageError if an exercise wants more different
  // words than have so many syllables.
  SyntheticTask(const TaskSettings& settings, const Tokenizer& tokenizer,
                const std::string& end_token);

  // Appends the sequence `number` to a batch: exercises of up to `length` tokens in all, which do
  // not see each other. At least one: UsageError if the length has no room for the smallest.
  void append(uint64_t seed, int64_t number, int64_t length, MicroBatch& batch) const;

  const TaskSettings& settings() const { return settings_; }

 private:
  struct Exercise {
    std::vector<int32_t> ids;
    std::vector<bool> answer;
    int64_t size() const { return static_cast<int64_t>(ids.size()); }
  };
  // Of at most `room` tokens; empty if that is too little.
  Exercise make(Random& random, int64_t room) const;
  Exercise recall(Random& random, int64_t room) const;
  Exercise needle(Random& random, int64_t room) const;
  Exercise variables(Random& random, int64_t room) const;
  Exercise copy(Random& random) const;
  Exercise induction(Random& random) const;
  Exercise arithmetic(Random& random) const;

  bool fills_its_room() const;
  std::vector<int32_t> encode(const std::string& text) const;
  void add(Exercise& e, const std::string& text, bool answer) const;
  // `lines` in their order at random places among sentences, `room` tokens in all.
  void hide(Exercise& e, Random& random, const std::vector<std::vector<int32_t>>& lines,
            int64_t room) const;

  TaskSettings settings_;
  Tokenizer tokenizer_;
  int32_t end_ = 0;
  std::vector<std::vector<int32_t>> sentences_;
};

}  // namespace tamis
