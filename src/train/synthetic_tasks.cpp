#include "train/synthetic_tasks.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "base/error.h"
#include "train/random.h"

namespace tamis {
namespace {

constexpr std::pair<TaskKind, std::string_view> kNames[] = {
    {TaskKind::kRecall, "recall"},       {TaskKind::kNeedle, "needle"},
    {TaskKind::kVariables, "variables"}, {TaskKind::kCopy, "copy"},
    {TaskKind::kInduction, "induction"}, {TaskKind::kArithmetic, "arithmetic"}};

constexpr std::string_view kConsonants = "bdfgjklmnprstvz", kVowels = "aeiou";

// Of so many syllables; 0: two to four.
std::string word(Random& random, int64_t syllables) {
  std::string out;
  if (syllables == 0) syllables = 2 + random.below(3);
  for (; syllables > 0; --syllables) {
    out += kConsonants[static_cast<size_t>(random.below(kConsonants.size()))];
    out += kVowels[static_cast<size_t>(random.below(kVowels.size()))];
  }
  return out;
}

// How many words there are, as far as anything asks for so many.
int64_t words_of(int64_t syllables) {
  constexpr auto kSyllables = static_cast<int64_t>(kConsonants.size() * kVowels.size());
  int64_t count = 1;
  for (int64_t i = 0; i < (syllables == 0 ? 4 : std::min<int64_t>(4, syllables)); ++i) {
    count *= kSyllables;
  }
  return count;
}

std::vector<std::string> different_words(Random& random, int64_t count, int64_t syllables) {
  std::vector<std::string> words;
  std::set<std::string> known;
  while (static_cast<int64_t>(words.size()) < count) {
    std::string w = word(random, syllables);
    if (known.insert(w).second) words.push_back(std::move(w));
  }
  return words;
}

// The first digit is not 0.
std::string number_of(Random& random, int64_t digits) {
  std::string out(1, static_cast<char>('1' + random.below(9)));
  while (static_cast<int64_t>(out.size()) < digits) {
    out += static_cast<char>('0' + random.below(10));
  }
  return out;
}

template <typename T>
void shuffle(Random& random, std::vector<T>& list) {
  for (size_t i = list.size(); i > 1; --i) {
    std::swap(list[i - 1], list[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]);
  }
}

// The first `count` of [0, n) in a random order.
std::vector<size_t> chosen(Random& random, int64_t n, int64_t count) {
  std::vector<size_t> order(static_cast<size_t>(n));
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  shuffle(random, order);
  order.resize(static_cast<size_t>(std::min(n, count)));
  return order;
}

std::string sentence(Random& random) {
  constexpr std::string_view kWho[] = {"The farmer", "A neighbour", "The old teacher", "Her sister",
                                       "The driver", "One of us",   "The shopkeeper",  "A child"};
  constexpr std::string_view kDid[] = {"walked past", "looked at", "asked about", "forgot",
                                       "waited for",  "painted",   "heard of",    "came back to"};
  constexpr std::string_view kWhat[] = {"the bridge", "the garden",  "a small boat", "the market",
                                        "the window", "an old song", "the letter",   "the hill"};
  constexpr std::string_view kWhen[] = {"in the morning", "before lunch", "last year", "at night",
                                        "in the rain",    "on Sunday",    "again",     "in spring"};
  const auto pick = [&](const auto& list) { return std::string(list[random.below(8)]); };
  std::string text = pick(kWho);
  text += " " + pick(kDid);
  text += " " + pick(kWhat);
  return text + " " + pick(kWhen) + ".\n";
}

int64_t total(const std::vector<std::vector<int32_t>>& lines) {
  size_t sum = 0;
  for (const std::vector<int32_t>& line : lines) sum += line.size();
  return static_cast<int64_t>(sum);
}

// Of one exercise, and different from each other.
int64_t words_at_once(const TaskSettings& s) {
  switch (s.kind) {
    case TaskKind::kRecall:
      return s.keys;
    case TaskKind::kNeedle:
      return std::max<int64_t>(1, s.keys);
    case TaskKind::kVariables:
      return std::max<int64_t>(1, s.keys) * (s.hops + 1);
    case TaskKind::kInduction:
      return s.words;
    default:
      return 1;
  }
}

int64_t own_digits(TaskKind kind) {
  if (kind == TaskKind::kVariables) return 5;
  return kind == TaskKind::kArithmetic ? 3 : 4;
}

}  // namespace

TaskKind task_from_name(std::string_view name) {
  std::string known;
  for (const auto& [kind, own] : kNames) {
    if (own == name) return kind;
    known += (known.empty() ? "" : ", ") + std::string(own);
  }
  throw UsageError("unknown task '" + printable(name) + "': want one of " + known);
}

std::string_view task_name(TaskKind kind) { return kNames[static_cast<size_t>(kind)].second; }

SyntheticTask::SyntheticTask(const TaskSettings& settings, const Tokenizer& tokenizer,
                             const std::string& end_token)
    : settings_(settings), tokenizer_(tokenizer) {
  const std::optional<int32_t> end = tokenizer.token_to_id(end_token);
  if (!end) throw InputError("task: the tokenizer has no token " + end_token);
  end_ = *end;
  Random random(1, 1);  // the sentences are the same for every seed
  for (int i = 0; i < 512; ++i) sentences_.push_back(encode(sentence(random)));
  if (settings_.digits == 0) settings_.digits = own_digits(settings_.kind);
  if (words_at_once(settings_) > words_of(settings_.syllables)) {
    throw UsageError(fmt::format("task {}: {} different words of {} syllables; there are {}",
                                 task_name(settings_.kind), words_at_once(settings_),
                                 settings_.syllables, words_of(settings_.syllables)));
  }
}

std::vector<int32_t> SyntheticTask::encode(const std::string& text) const {
  return tokenizer_.encode(text, SpecialTokens::kPlain);
}

void SyntheticTask::add(Exercise& e, const std::string& text, bool answer) const {
  const std::vector<int32_t> ids = encode(text);
  e.ids.insert(e.ids.end(), ids.begin(), ids.end());
  e.answer.resize(e.ids.size(), answer);
}

void SyntheticTask::hide(Exercise& e, Random& random,
                         const std::vector<std::vector<int32_t>>& lines, int64_t room) const {
  std::vector<const std::vector<int32_t>*> around;
  for (int64_t left = room - total(lines);;) {
    const auto& s = sentences_[static_cast<size_t>(random.below(512))];
    left -= static_cast<int64_t>(s.size());
    if (left < 0) break;
    around.push_back(&s);
  }
  // Before which sentence each line stands; the lines keep their order.
  std::vector<int64_t> places;
  for (size_t i = 0; i < lines.size(); ++i) {
    places.push_back(random.below(static_cast<int64_t>(around.size()) + 1));
  }
  std::sort(places.begin(), places.end());
  size_t line = 0;
  for (int64_t i = 0; i <= static_cast<int64_t>(around.size()); ++i) {
    for (; line < lines.size() && places[line] == i; ++line) {
      e.ids.insert(e.ids.end(), lines[line].begin(), lines[line].end());
    }
    if (i == static_cast<int64_t>(around.size())) break;
    const std::vector<int32_t>& s = *around[static_cast<size_t>(i)];
    e.ids.insert(e.ids.end(), s.begin(), s.end());
  }
  e.answer.resize(e.ids.size(), false);
}

SyntheticTask::Exercise SyntheticTask::recall(Random& random, int64_t room) const {
  Exercise e;
  std::vector<std::string> keys, values;
  std::set<std::string> known;
  // A question is as long as its line, the two of them the longest that the line was.
  int64_t longest = 0, left = room - 1;
  const int64_t most = settings_.keys > 0 ? settings_.keys : words_of(settings_.syllables);
  while (static_cast<int64_t>(keys.size()) < most) {
    std::string key = word(random, settings_.syllables);
    std::string value = number_of(random, settings_.digits);
    if (!known.insert(key).second) continue;
    const std::vector<int32_t> line = encode(key + " = " + value + "\n");
    const auto size = static_cast<int64_t>(line.size());
    longest = std::max(longest, size + 2);
    if (left - size < longest * settings_.queries) break;
    left -= size;
    e.ids.insert(e.ids.end(), line.begin(), line.end());
    keys.push_back(std::move(key));
    values.push_back(std::move(value));
  }
  e.answer.resize(e.ids.size(), false);
  if (keys.empty()) return {};
  for (const size_t i : chosen(random, static_cast<int64_t>(keys.size()), settings_.queries)) {
    add(e, keys[i] + "?", false);
    add(e, " " + values[i], true);
    add(e, "\n", false);
  }
  return e;
}

SyntheticTask::Exercise SyntheticTask::needle(Random& random, int64_t room) const {
  const int64_t keys = std::max<int64_t>(1, settings_.keys);
  const std::vector<std::string> names = different_words(random, keys, settings_.syllables);
  struct Line {
    size_t key;
    std::string value;
  };
  std::vector<Line> needles;
  for (size_t k = 0; k < names.size(); ++k) {
    for (int64_t v = 0; v < settings_.values; ++v)
      needles.push_back({k, number_of(random, settings_.digits)});
  }
  shuffle(random, needles);
  std::vector<std::vector<int32_t>> lines;
  for (const Line& n : needles) {
    lines.push_back(encode("The code of " + names[n.key] + " is " + n.value + ".\n"));
  }
  Exercise question;
  for (const size_t k : chosen(random, keys, settings_.queries)) {
    add(question, "The code of " + names[k] + "?", false);
    for (const Line& n : needles) {  // in the order in which they stand
      if (n.key == k) add(question, " " + n.value, true);
    }
    add(question, "\n", true);  // how many there are is part of the answer
  }
  const int64_t prompt = room - 1 - question.size();
  if (prompt < total(lines)) return {};
  Exercise e;
  hide(e, random, lines, prompt);
  e.ids.insert(e.ids.end(), question.ids.begin(), question.ids.end());
  e.answer.insert(e.answer.end(), question.answer.begin(), question.answer.end());
  return e;
}

SyntheticTask::Exercise SyntheticTask::variables(Random& random, int64_t room) const {
  const int64_t chains = std::max<int64_t>(1, settings_.keys), links = settings_.hops + 1;
  const std::vector<std::string> names =
      different_words(random, chains * links, settings_.syllables);
  std::vector<std::string> values;
  for (int64_t c = 0; c < chains; ++c) values.push_back(number_of(random, settings_.digits));
  // Chains mixed, each in its own order.
  std::vector<int64_t> order;
  for (int64_t i = 0; i < chains * links; ++i) order.push_back(i % chains);
  shuffle(random, order);
  std::vector<int64_t> next(static_cast<size_t>(chains));
  std::vector<std::vector<int32_t>> lines;
  for (const int64_t c : order) {
    const auto at = static_cast<size_t>(c * links + next[static_cast<size_t>(c)]);
    const bool first = next[static_cast<size_t>(c)]++ == 0;
    const std::string& from = first ? values[static_cast<size_t>(c)] : names[at - 1];
    lines.push_back(encode("let " + names[at] + " = " + from + "\n"));
  }
  const int64_t asked = random.below(chains);
  Exercise question;
  add(question, "Which are " + values[static_cast<size_t>(asked)] + "?", false);
  for (int64_t i = 0; i < links; ++i) {
    add(question, " " + names[static_cast<size_t>(asked * links + i)], true);
  }
  const int64_t prompt = room - 1 - question.size();
  if (prompt < total(lines)) return {};
  Exercise e;
  hide(e, random, lines, prompt);
  e.ids.insert(e.ids.end(), question.ids.begin(), question.ids.end());
  e.answer.insert(e.answer.end(), question.answer.begin(), question.answer.end());
  return e;
}

SyntheticTask::Exercise SyntheticTask::copy(Random& random) const {
  Exercise e;
  std::string text;
  for (int64_t n = 1 + random.below(settings_.words); n > 0; --n)
    text += " " + word(random, settings_.syllables);
  add(e, text, false);
  add(e, " |", false);
  add(e, text, true);
  return e;
}

SyntheticTask::Exercise SyntheticTask::induction(Random& random) const {
  Exercise e;
  const int64_t n = 2 + random.below(settings_.words - 1);
  const std::vector<std::string> words = different_words(random, n, settings_.syllables);
  const auto asked = static_cast<size_t>(random.below(n - 1));
  for (const std::string& w : words) add(e, " " + w, false);
  add(e, " | " + words[asked], false);
  add(e, " " + words[asked + 1], true);
  return e;
}

SyntheticTask::Exercise SyntheticTask::arithmetic(Random& random) const {
  std::vector<int64_t> terms;  // signed, the first one positive
  for (int64_t n = 2 + random.below(settings_.terms - 1); n > 0; --n) {
    const int64_t size = std::stoll(number_of(random, 1 + random.below(settings_.digits)));
    terms.push_back(!terms.empty() && random.below(2) == 1 ? -size : size);
  }
  const auto rest = [&](size_t from) {
    std::string text;
    for (size_t i = from; i < terms.size(); ++i) {
      text += (terms[i] < 0 ? " - " : " + ") + std::to_string(std::abs(terms[i]));
    }
    return text;
  };
  Exercise e;
  add(e, std::to_string(terms[0]) + rest(1) + " =", false);
  int64_t sum = terms[0];
  for (size_t i = 1; i < terms.size(); ++i) {
    sum += terms[i];
    add(e, " " + std::to_string(sum) + rest(i + 1) + (i + 1 < terms.size() ? " =" : ""), true);
  }
  return e;
}

SyntheticTask::Exercise SyntheticTask::make(Random& random, int64_t room) const {
  Exercise e;
  switch (settings_.kind) {
    case TaskKind::kRecall:
      e = recall(random, room);
      break;
    case TaskKind::kNeedle:
      e = needle(random, room);
      break;
    case TaskKind::kVariables:
      e = variables(random, room);
      break;
    case TaskKind::kCopy:
      e = copy(random);
      break;
    case TaskKind::kInduction:
      e = induction(random);
      break;
    case TaskKind::kArithmetic:
      e = arithmetic(random);
      break;
  }
  if (e.ids.empty() || e.size() + 1 > room) return {};
  e.ids.push_back(end_);
  e.answer.push_back(true);
  return e;
}

bool SyntheticTask::fills_its_room() const { return settings_.kind <= TaskKind::kVariables; }

void SyntheticTask::append(uint64_t seed, int64_t number, int64_t length, MicroBatch& batch) const {
  // A stream of its own for each task, apart from the windows of the shards.
  const uint64_t own = 0x7461736B00ULL + static_cast<uint64_t>(settings_.kind);
  Random random(seed ^ own, static_cast<uint64_t>(number));
  if (batch.begins.empty()) batch.begins.push_back(0);
  const int64_t least = settings_.min_length > 0 ? std::min(settings_.min_length, length) : length;
  bool any = false;
  for (int64_t left = length; left > 0;) {
    int64_t room = left;
    if (fills_its_room()) {
      if (any && left < least) break;
      room = least + random.below(left - least + 1);
    }
    Exercise e = make(random, room);
    // A short exercise that was drawn too long for a whole sequence is drawn again.
    for (int i = 0; i < 100 && e.ids.empty() && !any; ++i) e = make(random, room);
    // And so is a longer one if min_length was too little.
    for (int i = 0; i < 100 && e.ids.empty() && !any && room < left; ++i) e = make(random, left);
    if (e.ids.empty()) break;
    any = true;
    left -= e.size();
    for (size_t i = 0; i < e.ids.size(); ++i) {
      batch.ids.push_back(e.ids[i]);
      const bool asked = i + 1 < e.ids.size() && e.answer[i + 1];
      batch.targets.push_back(asked ? e.ids[i + 1] : -1);
    }
    batch.begins.push_back(batch.tokens());
  }
  if (!any) {
    throw UsageError(fmt::format(
        "task {}: {} tokens have no room for it; want longer sequences or a smaller exercise",
        task_name(settings_.kind), length));
  }
}

}  // namespace tamis
