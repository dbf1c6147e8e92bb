// Answers to the exercises that training makes from a seed (train/synthetic_tasks.h), exact or not:
// many sequences a forward pass, so that thousands of answers take seconds on a GPU.
//
// Exercise and answer are run together. A question's answer counts if every token of it is the most
// likely one, which is what greedy decoding would give. An exercise may ask several questions; each
// is an item of its own, and sees those before it with their right answers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/function_ref.h"
#include "engine/loaded_model.h"
#include "engine/paged_cache.h"
#include "train/synthetic_tasks.h"

namespace tamis {

// "needle:keys=4,queries=2": a task and its settings, the keys of docs/training.md but min_length.
// UsageError naming what is wrong.
TaskSettings task_from_text(std::string_view text);

struct ExerciseOptions {
  SelectionPolicy policy;
  CacheOptions cache;            // pages is ignored
  int64_t batch_tokens = 16384;  // of one forward pass; at least one sequence
};

struct ExerciseScore {
  int64_t sequences = 0, tokens = 0;
  int64_t answers = 0, right = 0;
  int64_t answer_tokens = 0, right_tokens = 0;
  // Answers that stood last, their first three tokens, more than policy.topk positions before the
  // question's end: what a window of that size cannot see. Of those that stood anywhere, `stood`.
  int64_t far = 0, stood = 0;
  // '1' or '0' for each answer, a word for each sequence of the task.
  std::string results;
};

class ExerciseGrader {
 public:
  // Keeps references to both. UsageError if the model has fewer than `length` positions.
  ExerciseGrader(KernelContext& context, const LoadedModel& model, const ExerciseOptions& options,
                 int64_t length);
  ~ExerciseGrader();
  ExerciseGrader(const ExerciseGrader&) = delete;

  // The sequences [first, first + count) of a task, of `length` tokens each. They depend on the
  // seed, the task and their number, and are none that any training run or validation draws.
  // InputError if a result is not finite or an id outside the vocabulary; progress(n) after so
  // many more sequences.
  ExerciseScore grade(const SyntheticTask& task, uint64_t seed, int64_t first, int64_t count,
                      FunctionRef<void(int64_t)> progress);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tamis
