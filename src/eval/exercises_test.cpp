#include "eval/exercises.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "eval/retrieval.h"
#include "train/token_data.h"

namespace tamis {
namespace {

const std::string kModel = TAMIS_SOURCE_DIR "/models/tamis-mini";

TEST(TaskFromText, ReadsSettings) {
  const TaskSettings s = task_from_text("needle:keys=4,values=2,queries=3");
  EXPECT_EQ(s.kind, TaskKind::kNeedle);
  EXPECT_EQ(s.keys, 4);
  EXPECT_EQ(s.values, 2);
  EXPECT_EQ(s.queries, 3);
  EXPECT_EQ(task_from_text("copy").words, TaskSettings().words);
  EXPECT_EQ(task_from_text("recall:syllables=1,digits=2").syllables, 1);
  EXPECT_EQ(task_from_text("induction:words=300").words, 300);
  for (const char* wrong :
       {"", "copies", "copy:word=3", "copy:words", "copy:words=", "copy:words=x", "copy:words=1",
        "needle:queries=0", "copy:words=3,,", "recall:keys=-1", "arithmetic:digits=10",
        "copy:syllables=5", "copy:words=99999999999999999999"}) {
    EXPECT_THROW(task_from_text(wrong), UsageError) << wrong;
  }
}

// Batched answers against prompt and answer one by one.
TEST(ExerciseGrader, GivesWhatTheAnswersAloneGive) {
  KernelContext context(2);
  const LoadedModel model(kModel, {}, single_group());
  const Tokenizer tokenizer = Tokenizer::load(kModel + "/tokenizer.json");
  constexpr int64_t kLength = 160;
  ExerciseOptions options;
  options.policy.topk = 24;
  RetrievalOptions alone;
  alone.policy = options.policy;
  AnswerChecker checker(context, model, alone, kLength);
  int64_t right = 0;
  for (const char* text : {"recall:queries=3", "needle:keys=2", "copy:words=4", "arithmetic"}) {
    SCOPED_TRACE(text);
    const SyntheticTask task(task_from_text(text), tokenizer, kEndToken);
    options.batch_tokens = 1;
    ExerciseGrader one(context, model, options, kLength);
    options.batch_tokens = 3 * kLength;
    ExerciseGrader several(context, model, options, kLength);
    const ExerciseScore a = one.grade(task, 5, 2, 2, [](int64_t) {});
    const ExerciseScore b = several.grade(task, 5, 2, 2, [](int64_t) {});
    EXPECT_EQ(a.results, b.results);
    EXPECT_EQ(a.right_tokens, b.right_tokens);
    EXPECT_EQ(a.sequences, 2);

    std::string results;
    int64_t answers = 0, answer_tokens = 0, right_tokens = 0;
    for (int64_t i = 2; i < 4; ++i) {
      if (i > 2) results += ' ';
      MicroBatch batch;
      task.append(5 ^ (0x6578616DULL << 32), i, kLength, batch);
      for (int64_t s = 0; s < batch.sequences(); ++s) {
        const auto begin = batch.begins[static_cast<size_t>(s)];
        const auto end = batch.begins[static_cast<size_t>(s) + 1];
        for (int64_t t = begin; t < end;) {
          int64_t last = t;
          while (last < end && batch.targets[static_cast<size_t>(last)] >= 0) ++last;
          // The end of text alone is no answer.
          if (last > t && last < end - (last == t + 1 ? 1 : 0)) {
            const std::span ids(batch.ids);
            const auto prompt =
                ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(t + 1 - begin));
            const auto answer =
                ids.subspan(static_cast<size_t>(t) + 1, static_cast<size_t>(last - t));
            const int64_t found = checker.right_tokens(prompt, answer);
            const bool all = found == last - t;
            results += all ? '1' : '0';
            right += found;
            ++answers;
            answer_tokens += last - t;
            right_tokens += found;
          }
          t = std::max(last, t) + 1;
        }
      }
    }
    EXPECT_EQ(a.results, results);
    EXPECT_EQ(a.answers, answers);
    EXPECT_EQ(a.answer_tokens, answer_tokens);
    EXPECT_GE(a.right_tokens, right_tokens);  // the checker stops at the first wrong one
    EXPECT_GT(answers, 1);
  }
  EXPECT_GT(right, 0);
}

TEST(ExerciseGrader, KnowsWhatAWindowCannotSee) {
  KernelContext context(2);
  const LoadedModel model(kModel, {}, single_group());
  const Tokenizer tokenizer = Tokenizer::load(kModel + "/tokenizer.json");
  ExerciseOptions options;
  const SyntheticTask recall(task_from_text("recall:queries=4"), tokenizer, kEndToken);
  for (const int64_t topk : {1, 1000}) {
    options.policy.topk = topk;
    ExerciseGrader grader(context, model, options, 128);
    const ExerciseScore s = grader.grade(recall, 1, 0, 1, [](int64_t) {});
    EXPECT_EQ(s.answers, 4);
    EXPECT_EQ(s.stood, 4);
    EXPECT_EQ(s.far, topk == 1 ? 4 : 0);
  }
  EXPECT_THROW(ExerciseGrader(context, model, options, 5000), UsageError);
}

}  // namespace
}  // namespace tamis
