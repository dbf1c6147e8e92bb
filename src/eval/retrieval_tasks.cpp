#include "eval/retrieval_tasks.h"

#include <algorithm>
#include <set>

#include "base/error.h"

namespace tamis {
namespace {

constexpr std::string_view kQualities[] = {
    "amber",   "ancient", "black",  "blue",  "calm",   "clear", "clever", "cold",   "coral",
    "crimson", "curious", "damp",   "dark",  "deep",   "dusty", "eager",  "early",  "empty",
    "fading",  "fast",    "fierce", "giant", "golden", "grand", "green",  "happy",  "hidden",
    "hollow",  "icy",     "idle",   "iron",  "ivory",  "jolly", "keen",   "kind",   "large",
    "lazy",    "light",   "little", "lone",  "lost",   "loud",  "lucky",  "mellow", "misty",
    "modest",  "narrow",  "old",    "olive", "pale",   "plain", "polite", "proud",  "purple",
    "rapid",   "rare",    "rough",  "royal", "shiny",  "short", "silent", "silver", "slow",
    "solid",   "steady",  "stormy", "swift", "tame",   "tidy",  "tiny",   "vast",   "warm"};
constexpr std::string_view kThings[] = {
    "anchor",  "apple",   "arrow",  "badger",  "basin",  "beacon", "bear",   "bell",    "bird",
    "boat",    "bottle",  "branch", "brook",   "bucket", "cabin",  "camel",  "candle",  "canyon",
    "cave",    "cedar",   "chain",  "cliff",   "coast",  "comet",  "crane",  "crow",    "crystal",
    "dawn",    "desert",  "door",   "dragon",  "dune",   "eagle",  "ember",  "engine",  "falcon",
    "feather", "fern",    "field",  "forest",  "fox",    "garden", "harbor", "hill",    "horse",
    "island",  "kettle",  "lake",   "lantern", "leaf",   "lemon",  "lion",   "lizard",  "maple",
    "marble",  "meadow",  "mirror", "moon",    "night",  "orchid", "paper",  "pebble",  "pilot",
    "planet",  "prairie", "rabbit", "raven",   "reef",   "river",  "robin",  "rocket",  "root",
    "sail",    "salmon",  "scarf",  "shadow",  "shell",  "ship",   "shore",  "sparrow", "spring",
    "stone",   "storm",   "summit", "temple",  "tiger",  "tower",  "trail",  "train",   "tree",
    "valley",  "wagon",   "water",  "wave",    "whale",  "willow", "window", "winter",  "wolf"};
constexpr std::string_view kNames[] = {"Alice", "Bella", "David", "Grace", "Ivan",   "Karen",
                                       "Laura", "Nina",  "Nora",  "Otto",  "Petra",  "Quentin",
                                       "Rosa",  "Sarah", "Tina",  "Vera",  "Victor", "Wendy"};
constexpr std::string_view kCities[] = {"Athens", "Berlin", "Lisbon", "London", "Madrid", "Oslo",
                                        "Paris",  "Prague", "Rome",   "Tokyo",  "Vienna", "Warsaw"};

std::string upper(std::string_view word) {
  std::string out(word);
  for (char& c : out) c = static_cast<char>(c - 'a' + 'A');
  return out;
}

}  // namespace

class RetrievalCases::Random {  // splitmix64
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    state_ += 0x9E3779B97F4A7C15ULL;
    uint64_t x = state_;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  template <size_t n>
  std::string pick(const std::string_view (&words)[n]) {
    return std::string(words[static_cast<size_t>(below(n))]);
  }
  std::string digits(int64_t count) {  // the first one is not 0
    std::string out(1, static_cast<char>('1' + below(9)));
    while (static_cast<int64_t>(out.size()) < count) out += static_cast<char>('0' + below(10));
    return out;
  }
  // Names of settings, in the five forms that the model knows, by their share in its training.
  // Each part is drawn in a statement of its own, the last ones first where that is how the first
  // questions came to be: operands of one + may be drawn in any order.
  std::string key() {
    switch (below(8)) {
      case 0: {
        const std::string number = digits(3);
        return upper(pick(kThings)) + "_" + number;
      }
      case 1: {
        const std::string first = pick(kThings), last = pick(kThings);
        return first + "." + pick(kQualities) + "." + last;
      }
      case 2: {
        const std::string thing = pick(kThings);
        return pick(kNames) + " " + thing;
      }
      case 3: {
        const std::string first = pick(kQualities), number = digits(2);
        return first + "_" + pick(kThings) + "_" + number;
      }
      default: {
        const std::string first = pick(kQualities);
        return first + "-" + pick(kThings);
      }
    }
  }
  std::string value() {
    switch (below(8)) {
      case 0:
      case 1:
        return pick(kThings);
      case 2: {
        const std::string first = pick(kQualities);
        return first + " " + pick(kThings);
      }
      default:
        return digits(6);
    }
  }

 private:
  uint64_t state_;
};

RetrievalTask retrieval_task_from_name(std::string_view name) {
  if (name == "kv") return RetrievalTask::kKeyValue;
  if (name == "needle") return RetrievalTask::kNeedle;
  throw UsageError("unknown task '" + printable(name) + "': want kv or needle");
}

std::string_view retrieval_task_name(RetrievalTask task) {
  return task == RetrievalTask::kKeyValue ? "kv" : "needle";
}

RetrievalCases::RetrievalCases(const Tokenizer& tokenizer, std::string_view text, uint64_t seed)
    : tokenizer_(tokenizer), seed_(seed) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size() - 1) + 1;
    Line line{std::string(text.substr(begin, end - begin)), 0};
    line.tokens = count(line.text);
    haystack_.push_back(std::move(line));
    begin = end;
  }
  if (haystack_.empty()) throw InputError("the text to hide answers in is empty");
}

int64_t RetrievalCases::count(const std::string& text) const {
  return static_cast<int64_t>(tokenizer_.encode(text, SpecialTokens::kPlain).size());
}

RetrievalCase RetrievalCases::key_value(int64_t tokens, Random& random) const {
  std::vector<Line> lines;
  std::vector<std::string> keys, values;
  std::set<std::string> known;
  constexpr int64_t kQuestion = 24;  // tokens of the longest question
  for (int64_t left = tokens - kQuestion; left > 0;) {
    const std::string key = random.key(), value = random.value();
    if (!known.insert(key).second) continue;
    Line line{key + " = " + value + "\n", 0};
    line.tokens = count(line.text);
    left -= line.tokens;
    if (left < 0) break;
    keys.push_back(key);
    values.push_back(value);
    lines.push_back(std::move(line));
  }
  if (lines.size() < 2) throw UsageError("retrieval: too few tokens for two lines");
  const int64_t n = static_cast<int64_t>(lines.size()), chosen = random.below(n);
  RetrievalCase c;
  for (const Line& line : lines) c.question += line.text;
  c.question += "\nWhat is the value of " + keys[static_cast<size_t>(chosen)] + "?";
  c.answer = values[static_cast<size_t>(chosen)];
  c.depth = static_cast<double>(chosen) / static_cast<double>(n - 1);
  return c;
}

RetrievalCase RetrievalCases::needle(int64_t tokens, Random& random) const {
  const std::string city = random.pick(kCities), code = random.digits(6);
  const std::string line = "The secret code of " + city + " is " + code + ".\n";
  const std::string question = "\nWhat is the secret code of " + city + "?";
  int64_t left = tokens - count(line) - count(question) - 1;
  // Lines from a random one on; a text shorter than the context repeats.
  std::vector<const Line*> lines;
  for (size_t i = static_cast<size_t>(random.below(static_cast<int64_t>(haystack_.size())));;
       i = (i + 1) % haystack_.size()) {
    left -= haystack_[i].tokens;
    if (left < 0) break;
    lines.push_back(&haystack_[i]);
  }
  if (lines.size() < 2) throw UsageError("retrieval: too few tokens for two lines of the text");
  const int64_t place = random.below(static_cast<int64_t>(lines.size()) + 1);
  RetrievalCase c;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (static_cast<int64_t>(i) == place) c.question += line;
    c.question += lines[i]->text;
  }
  if (place == static_cast<int64_t>(lines.size())) c.question += line;
  c.question += question;
  c.answer = code;
  c.depth = static_cast<double>(place) / static_cast<double>(lines.size());
  return c;
}

RetrievalCase RetrievalCases::make(RetrievalTask task, int64_t tokens, int64_t index) const {
  Random random(seed_);
  for (const int64_t part : {static_cast<int64_t>(task), tokens, index}) {
    random = Random(random.next() ^ static_cast<uint64_t>(part));
  }
  return task == RetrievalTask::kKeyValue ? key_value(tokens, random) : needle(tokens, random);
}

}  // namespace tamis
