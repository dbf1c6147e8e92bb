// What training draws from: exercises that are answered rightly, mixtures with their weights, and
// conversations whose answers are marked.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <sstream>

#include "base/error.h"
#include "checkpoint/scratch_folder.h"
#include "train/mixture.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

constexpr TaskKind kKinds[] = {TaskKind::kRecall, TaskKind::kNeedle,    TaskKind::kVariables,
                               TaskKind::kCopy,   TaskKind::kInduction, TaskKind::kArithmetic};

std::string tokenizer_file() {
  return std::string(TAMIS_SOURCE_DIR) + "/tests/golden/tokenizer/small_bpe.tokenizer.json";
}

std::vector<std::string> split(const std::string& text, const std::string& mark) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t at; (at = text.find(mark, begin)) != std::string::npos; begin = at + mark.size()) {
    parts.push_back(text.substr(begin, at - begin));
  }
  parts.push_back(text.substr(begin));
  return parts;
}

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> words;
  for (std::string w; in >> w;) words.push_back(w);
  return words;
}

class Tasks : public testing::Test {
 protected:
  MicroBatch batch(const TaskSettings& s, int64_t number, int64_t length = 300, uint64_t seed = 4) {
    MicroBatch b;
    SyntheticTask(s, tokenizer_, kEndToken).append(seed, number, length, b);
    return b;
  }
  // Exercise i: what is given, and what is asked for without the end of the text.
  struct Text {
    std::string whole, answers;
  };
  std::vector<Text> texts(const MicroBatch& b) {
    std::vector<Text> out;
    const int32_t end = *tokenizer_.token_to_id(kEndToken);
    for (int64_t i = 0; i < b.sequences(); ++i) {
      std::vector<int32_t> ids, answers;
      for (int64_t t = b.begins[static_cast<size_t>(i)]; t < b.begins[static_cast<size_t>(i) + 1];
           ++t) {
        const auto at = static_cast<size_t>(t);
        ids.push_back(b.ids[at]);
        if (b.targets[at] >= 0) answers.push_back(b.targets[at]);
      }
      EXPECT_EQ(ids.back(), end);
      EXPECT_EQ(answers.back(), end);
      ids.pop_back();
      answers.pop_back();
      out.push_back({tokenizer_.decode(ids), tokenizer_.decode(answers)});
    }
    return out;
  }
  std::vector<Text> many(const TaskSettings& s) {
    std::vector<Text> all;
    for (int64_t n = 0; n < 20; ++n) {
      for (Text& t : texts(batch(s, n))) all.push_back(std::move(t));
    }
    return all;
  }
  Tokenizer tokenizer_ = Tokenizer::load(tokenizer_file());
};

TEST_F(Tasks, AreFunctionsOfSeedAndNumber) {
  for (const TaskKind kind : kKinds) {
    SCOPED_TRACE(task_name(kind));
    TaskSettings s;
    s.kind = kind;
    const MicroBatch a = batch(s, 5), b = batch(s, 5);
    EXPECT_EQ(a.ids, b.ids);
    EXPECT_EQ(a.targets, b.targets);
    EXPECT_EQ(a.begins, b.begins);
    EXPECT_NE(a.ids, batch(s, 6).ids);
    EXPECT_NE(a.ids, batch(s, 5, 300, 8).ids);
    EXPECT_EQ(task_from_name(task_name(kind)), kind);
    for (const int64_t length : {80, 81, 150, 1000}) {
      const MicroBatch c = batch(s, length, length);
      EXPECT_LE(c.tokens(), length);
      EXPECT_GT(c.tokens(), length / 2) << "most of the sequence is used";
      ASSERT_EQ(c.begins.back(), c.tokens());
      for (size_t i = 0; i + 1 < c.ids.size(); ++i) {
        ASSERT_TRUE(c.targets[i] == -1 || c.targets[i] == c.ids[i + 1]);
      }
      for (size_t i = 1; i < c.begins.size(); ++i) {
        ASSERT_EQ(c.targets[static_cast<size_t>(c.begins[i] - 1)], -1);
      }
    }
  }
  EXPECT_THROW(task_from_name("recal"), UsageError);
  TaskSettings s;
  s.kind = TaskKind::kNeedle;
  EXPECT_THROW(batch(s, 0, 12), UsageError);
}

TEST_F(Tasks, RecallAsksForItsLines) {
  TaskSettings s;
  s.queries = 3;
  for (const Text& t : many(s)) {
    std::map<std::string, std::string> value;
    std::string answers;
    for (const std::string& line : split(t.whole, "\n")) {
      if (const auto pair = split(line, " = "); pair.size() == 2) {
        EXPECT_TRUE(value.emplace(pair[0], pair[1]).second) << "a key twice";
      } else if (const auto asked = split(line, "? "); asked.size() == 2) {
        EXPECT_EQ(asked[1], value.at(asked[0]));
        answers += " " + asked[1];
      }
    }
    EXPECT_EQ(answers, t.answers);
    EXPECT_EQ(words_of(answers).size(), 3U);
    EXPECT_GE(value.size(), 10U) << "the sequence is full";
  }
  s.keys = 4;
  EXPECT_EQ(split(many(s)[0].whole, " = ").size(), 5U);
}

TEST_F(Tasks, AreEasierWithFewShortKeys) {
  TaskSettings s;
  s.keys = 6;
  s.queries = 6;
  s.syllables = 1;
  s.digits = 2;
  s.min_length = 120;
  for (const Text& t : many(s)) {
    const std::vector<std::string> lines = split(t.whole, "\n");
    ASSERT_EQ(lines.size(), 13U) << t.whole;
    for (size_t i = 0; i < 6; ++i) EXPECT_EQ(lines[i].size(), std::string("ba = 12").size());
    EXPECT_EQ(words_of(t.answers).size(), 6U);
  }
  s.keys = 0;  // all there are, if they fit
  s.min_length = 0;
  EXPECT_EQ(split(texts(batch(s, 0, 2000))[0].whole, " = ").size(), 76U);
  s.keys = 76;
  EXPECT_THROW(batch(s, 0, 2000), UsageError);
  s.syllables = 2;
  EXPECT_EQ(split(texts(batch(s, 0, 2000))[0].whole, " = ").size(), 77U);
}

TEST_F(Tasks, FitWhereTheLeastLengthIsTooLittle) {
  TaskSettings s;
  s.kind = TaskKind::kNeedle;
  s.keys = 4;
  s.min_length = 8;
  for (const Text& t : many(s)) EXPECT_GE(split(t.whole, "The code of ").size(), 6U);
}

TEST_F(Tasks, NeedlesStandInTheText) {
  TaskSettings s;
  s.kind = TaskKind::kNeedle;
  s.keys = 4;
  s.values = 2;
  s.queries = 2;
  double depth = 0;
  const std::vector<Text> all = many(s);
  for (const Text& t : all) {
    std::map<std::string, std::string> value;
    std::string answers;
    size_t first = std::string::npos;
    for (const std::string& line : split(t.whole, "\n")) {
      if (const auto parts = split(line, " is ");
          line.starts_with("The code of ") && parts.size() == 2) {
        value[parts[0].substr(12)] += " " + parts[1].substr(0, 4);
        first = std::min(first, t.whole.find(line));
      } else if (const auto asked = split(line, "?"); asked.size() == 2) {
        EXPECT_EQ(asked[1], value.at(asked[0].substr(12)));
        answers += asked[1] + "\n";
      }
    }
    EXPECT_EQ(value.size(), 4U);
    EXPECT_EQ(answers, t.answers);
    depth += static_cast<double>(first) / static_cast<double>(t.whole.size());
  }
  // The first of eight uniform places: a mean of 1/9, deviation 0.1 / sqrt(20).
  EXPECT_NEAR(depth / static_cast<double>(all.size()), 1.0 / 9, 0.09);
}

TEST_F(Tasks, VariablesFollowTheirChain) {
  TaskSettings s;
  s.kind = TaskKind::kVariables;
  s.keys = 3;
  s.hops = 3;
  for (const Text& t : many(s)) {
    std::map<std::string, std::string> value;
    std::string answers;
    for (const std::string& line : split(t.whole, "\n")) {
      if (line.starts_with("let ")) {
        const auto pair = split(line.substr(4), " = ");
        const auto known = value.find(pair[1]);
        value[pair[0]] = known == value.end() ? pair[1] : known->second;
        EXPECT_TRUE(known != value.end() || pair[1].size() == 5) << line;
      } else if (line.starts_with("Which are ")) {
        for (const std::string& name : words_of(line.substr(16))) {
          EXPECT_EQ(value.at(name), line.substr(10, 5));
          answers += " " + name;
        }
      }
    }
    EXPECT_EQ(value.size(), 12U);
    EXPECT_EQ(words_of(answers).size(), 4U);
    EXPECT_EQ(answers, t.answers);
  }
}

TEST_F(Tasks, CopyAndInductionRepeat) {
  TaskSettings s;
  s.kind = TaskKind::kCopy;
  for (const Text& t : many(s)) {
    const auto halves = split(t.whole, " |");
    ASSERT_EQ(halves.size(), 2U);
    EXPECT_EQ(halves[0], halves[1]);
    EXPECT_EQ(halves[0], t.answers);
    EXPECT_LE(words_of(halves[0]).size(), 16U);
  }
  s.kind = TaskKind::kInduction;
  for (const Text& t : many(s)) {
    const auto halves = split(t.whole, " | ");
    const auto words = words_of(halves[0]), asked = words_of(halves[1]);
    const auto at = std::find(words.begin(), words.end(), asked[0]);
    ASSERT_NE(at, words.end());
    EXPECT_EQ(*(at + 1), asked[1]);
    EXPECT_EQ(" " + asked[1], t.answers);
  }
}

TEST_F(Tasks, SumsAreRight) {
  TaskSettings s;
  s.kind = TaskKind::kArithmetic;
  for (const Text& t : many(s)) {
    const auto steps = split(t.whole, " = ");
    EXPECT_GE(steps.size(), 2U);
    for (const std::string& step : steps) {
      std::istringstream in(step);
      int64_t sum = 0, term = 0;
      in >> sum;
      for (char op; in >> op >> term;) sum += op == '+' ? term : -term;
      EXPECT_EQ(std::to_string(sum), steps.back()) << t.whole;
    }
    EXPECT_TRUE(t.whole.ends_with(" =" + t.answers)) << t.whole;
  }
}

class Shards : public testing::Test {
 protected:
  Shards() {
    fs::create_directories(folder_ / "tokenizer");
    fs::copy_file(tokenizer_file(), folder_ / "tokenizer/tokenizer.json");
  }
  DataBuildOptions options(const std::string& out) {
    DataBuildOptions o;
    o.tokenizer = folder_ / "tokenizer";
    o.out = folder_ / out;
    return o;
  }
  static DataBuildResult build(const DataBuildOptions& o) {
    return build_data(o, [](int64_t, int64_t) {});
  }
  ScratchFolder folder_;
};

TEST_F(Shards, MixturesDrawByWeight) {
  DataBuildOptions text = options("text");
  text.inputs = {std::string(TAMIS_SOURCE_DIR) + "/README.md"};
  build(text);
  ShardCache cache;
  SourceSpec shards{folder_ / "text", {}, 3}, task{"", TaskSettings{}, 1};
  const Mixture mixture({shards, task}, folder_ / "tokenizer", cache);
  int64_t of_shards = 0;
  constexpr int64_t kDraws = 4000;
  for (int64_t n = 0; n < kDraws; ++n) {
    const size_t source = mixture.source_of(7, n);
    ASSERT_EQ(source, mixture.source_of(7, n));
    of_shards += source == 0 ? 1 : 0;
  }
  // A share of 3/4: five deviations of a binomial.
  EXPECT_NEAR(static_cast<double>(of_shards) / kDraws, 0.75, 5 * std::sqrt(0.75 * 0.25 / kDraws));
  MicroBatch a, b;
  for (int64_t n = 0; n < 10; ++n) mixture.append(7, n, 90, false, a);
  for (int64_t n = 0; n < 10; ++n) mixture.append(7, n, 90, false, b);
  EXPECT_EQ(a.ids, b.ids);

  // One source gives the same bits whether it is called a mixture or not.
  const Mixture single({shards}, folder_ / "tokenizer", cache);
  MicroBatch c, d;
  single.append(7, 3, 90, false, c);
  TokenData(folder_ / "text").append(7, 3, 90, d);
  EXPECT_EQ(c.ids, d.ids);
  EXPECT_NE(single.checksum(), mixture.checksum());
  EXPECT_THROW(single.check(7, 90, true), InputError) << "no answers";
  EXPECT_THROW(single.check(7, 1 << 20, false), InputError) << "longer than the data";
}

TEST_F(Shards, OnlyAnswersOfConversationsAreTargets) {
  folder_.write(
      "chat.jsonl",
      R"({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1?"},)"
      R"( {"role": "assistant", "content": "Yes, one."}, {"role": "user", "content": "Two?"},)"
      R"( {"role": "assistant", "content": "No."}]})"
      "\n\n"
      R"([{"role": "user", "content": "Three?"}, {"role": "assistant", "content": "Perhaps."}])"
      "\n");
  DataBuildOptions o = options("chat");
  o.inputs = {folder_ / "chat.jsonl"};
  o.chat = true;
  o.chat_format = "v3.1-plain";
  const DataBuildResult built = build(o);
  EXPECT_EQ(built.documents, 2);
  const TokenData data(folder_ / "chat");
  ASSERT_TRUE(data.has_answers());
  const Tokenizer tokenizer = Tokenizer::load(tokenizer_file());
  std::string answers;
  bool cut = false;
  for (int64_t n = 0; n < 12; ++n) {
    MicroBatch b;
    data.append_documents(2, n, 60, b);
    ASSERT_GT(b.tokens(), 0);
    ASSERT_LE(b.tokens(), 60);
    for (int64_t i = 0; i < b.sequences(); ++i) {
      std::vector<int32_t> ids;
      for (auto t = static_cast<size_t>(b.begins[static_cast<size_t>(i)]);
           t < static_cast<size_t>(b.begins[static_cast<size_t>(i) + 1]); ++t) {
        if (b.targets[t] >= 0) ids.push_back(b.targets[t]);
      }
      const std::string own = tokenizer.decode(ids);
      const std::string end = kEndToken;
      EXPECT_TRUE(own == "Yes, one." + end + "No." + end || own == "Perhaps." + end) << own;
      cut = cut || b.sequences() > 1;
    }
  }
  EXPECT_TRUE(cut) << "short documents share a sequence";
  MicroBatch b;
  data.append_documents(2, 0, 5, b);
  EXPECT_EQ(b.tokens(), 5) << "a document longer than the sequence is cut";

  // A source of a mixture may be drawn like that in stages of other kinds.
  ShardCache cache;
  const SourceSpec windows{folder_ / "chat", {}, 1, false}, whole{folder_ / "chat", {}, 1, true};
  const Mixture as_text({windows}, folder_ / "tokenizer", cache);
  const Mixture as_answers({whole}, folder_ / "tokenizer", cache);
  for (int64_t n = 0; n < 12; ++n) {
    MicroBatch want, own, sft, text;
    data.append_documents(2, n, 36, want);
    as_answers.append(2, n, 36, false, own);
    as_text.append(2, n, 36, true, sft);
    as_text.append(2, n, 36, false, text);
    EXPECT_EQ(own.ids, want.ids);
    EXPECT_EQ(own.targets, want.targets);
    EXPECT_EQ(own.begins, want.begins);
    EXPECT_EQ(sft.targets, want.targets);
    EXPECT_EQ(text.tokens(), 36);
    EXPECT_NE(text.targets, want.targets);
  }
  EXPECT_NE(as_text.checksum(), as_answers.checksum());

  DataBuildOptions wrong = options("wrong");
  wrong.inputs = {std::string(TAMIS_SOURCE_DIR) + "/README.md"};
  wrong.chat = true;
  wrong.chat_format = "v3.1-plain";
  EXPECT_THROW(build(wrong), InputError) << "no .jsonl";
  folder_.write("none.jsonl", R"([{"role": "user", "content": "Hello?"}])"
                              "\n");
  wrong.inputs = {folder_ / "none.jsonl"};
  wrong.out = folder_ / "wrong2";
  EXPECT_THROW(build(wrong), InputError) << "no answer";
}

}  // namespace
}  // namespace tamis
