#include "eval/retrieval.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/checksum.h"
#include "eval/retrieval_tasks.h"
#include "eval/trace.h"

namespace tamis {
namespace {

const std::string kSource = TAMIS_SOURCE_DIR;

class Cases : public ::testing::Test {
 protected:
  Cases()
      : tokenizer_(Tokenizer::load(kSource + "/models/tamis-mini/tokenizer.json")),
        text_(read_text_file(kSource + "/tests/golden/mini/eval_clean_public.txt", 1 << 20)),
        cases_(tokenizer_, text_, 1) {}

  int64_t tokens(const std::string& text) const {
    return static_cast<int64_t>(tokenizer_.encode(text, SpecialTokens::kPlain).size());
  }

  Tokenizer tokenizer_;
  std::string text_;
  RetrievalCases cases_;
};

TEST_F(Cases, FillTheContextAndHoldTheAnswerOnce) {
  for (const RetrievalTask task : {RetrievalTask::kKeyValue, RetrievalTask::kNeedle}) {
    for (const int64_t length : {200, 1000, 4000}) {
      for (int64_t i = 0; i < 10; ++i) {
        const RetrievalCase c = cases_.make(task, length, i);
        EXPECT_LE(tokens(c.question), length);
        // A line of the text may be long; a line of key and value is not.
        if (task == RetrievalTask::kKeyValue) {
          EXPECT_GE(tokens(c.question), length - 60);
        }
        EXPECT_GE(c.depth, 0);
        EXPECT_LE(c.depth, 1);
        // The line with the answer: "KEY = ANSWER" or "The secret code of CITY is ANSWER."
        const size_t asked = c.question.rfind(" of ") + 4;
        const std::string subject = c.question.substr(asked, c.question.size() - asked - 1);
        const std::string line = task == RetrievalTask::kKeyValue
                                     ? subject + " = " + c.answer + "\n"
                                     : "The secret code of " + subject + " is " + c.answer + ".\n";
        const size_t at = c.question.find(line);
        ASSERT_NE(at, std::string::npos) << c.question;
        EXPECT_TRUE(at == 0 || c.question[at - 1] == '\n');
        EXPECT_EQ(c.question.find("\n" + line, at + 1), std::string::npos);
        EXPECT_EQ(c.question.back(), '?');
      }
    }
  }
}

TEST_F(Cases, AreAFunctionOfSeedTaskLengthAndNumber) {
  const auto question = [&](uint64_t seed, RetrievalTask task, int64_t length, int64_t i) {
    return RetrievalCases(tokenizer_, text_, seed).make(task, length, i).question;
  };
  const std::string one = question(1, RetrievalTask::kNeedle, 500, 3);
  EXPECT_EQ(one, question(1, RetrievalTask::kNeedle, 500, 3));
  EXPECT_NE(one, question(2, RetrievalTask::kNeedle, 500, 3));
  EXPECT_NE(one, question(1, RetrievalTask::kNeedle, 500, 4));
  EXPECT_NE(one, question(1, RetrievalTask::kNeedle, 600, 3));
}

// Questions that numbers were stored of, whatever compiler made the program.
TEST_F(Cases, AreThoseOfTheStoredNumbers) {
  const std::string question = cases_.make(RetrievalTask::kKeyValue, 1000, 0).question;
  EXPECT_EQ(checksum_hex(std::as_bytes(std::span(question))), "4d9c60ed9feb0dff6851cf3db8269cf2");
}

TEST_F(Cases, AnswersStandEverywhere) {
  double lowest = 1, highest = 0;
  for (int64_t i = 0; i < 40; ++i) {
    const double depth = cases_.make(RetrievalTask::kNeedle, 2000, i).depth;
    lowest = std::min(lowest, depth);
    highest = std::max(highest, depth);
  }
  EXPECT_LT(lowest, 0.2);
  EXPECT_GT(highest, 0.8);
}

TEST_F(Cases, RefuseWhatCannotBe) {
  EXPECT_THROW(cases_.make(RetrievalTask::kKeyValue, 20, 0), UsageError);
  EXPECT_THROW(cases_.make(RetrievalTask::kNeedle, 20, 0), UsageError);
  EXPECT_THROW(RetrievalCases(tokenizer_, "", 1), InputError);
  EXPECT_THROW(retrieval_task_from_name("haystack"), UsageError);
  // A text without a last line end, of one line that fits twice.
  const RetrievalCases small(tokenizer_, "Only this line.", 1);
  EXPECT_NO_THROW(small.make(RetrievalTask::kNeedle, 100, 0));
}

// The checker against greedy decoding of a model with random weights.
TEST(AnswerChecker, CountsWhatGreedyDecodingWouldGive) {
  KernelContext context(2);
  const LoadedModel model(kSource + "/tests/golden/model/b_fp32_sparse_yarn", {}, single_group());
  std::vector<int32_t> prompt;
  for (int32_t i = 0; i < 40; ++i) prompt.push_back(3 + i * 7 % 260);
  TraceOptions trace_options;
  trace_options.greedy = 6;
  trace_options.policy.topk = model.config().index_topk;
  const Trace trace = record_trace(context, model, prompt, trace_options);
  std::vector<int32_t> answer;
  for (const int64_t id : trace.at("greedy.ids").ints) answer.push_back(static_cast<int32_t>(id));
  for (const int64_t forward : {1, 7, 39, 40, 41, 512}) {
    RetrievalOptions options;
    options.policy.topk = model.config().index_topk;
    options.forward = forward;
    AnswerChecker checker(context, model, options, 46);
    EXPECT_EQ(checker.right_tokens(prompt, answer), 6) << forward;
    for (int64_t wrong = 0; wrong < 6; ++wrong) {
      std::vector<int32_t> other = answer;
      int32_t& id = other[static_cast<size_t>(wrong)];
      id = id == 5 ? 6 : 5;
      EXPECT_EQ(checker.right_tokens(prompt, other), wrong) << forward;
    }
    EXPECT_THROW(checker.right_tokens(std::vector<int32_t>(60, 1), answer), UsageError);
  }
  EXPECT_THROW(AnswerChecker(context, model, {}, model.config().max_position + 1), UsageError);
}

}  // namespace
}  // namespace tamis
