// tamis eval exercises: the tasks of training with other seeds, thousands of answers at once.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/support.h"
#include "eval/exercises.h"
#include "train/token_data.h"

namespace tamis::cli {
namespace {

struct EvalExercisesFlags {
  ModelFlags model;
  ExerciseOptions options;
  std::vector<std::string> tasks{"recall:queries=8", "needle:keys=4,queries=2",
                                 "variables:keys=2", "copy",
                                 "induction",        "arithmetic"};
  std::vector<int64_t> contexts{1024};
  int64_t sequences = 64, first = 0;
  uint64_t seed = 1;
  bool json = false;
};

double share(int64_t part, int64_t all) {
  return all > 0 ? static_cast<double>(part) / static_cast<double>(all) : 0;
}

void print(const EvalExercisesFlags& f, const ExerciseOptions& o, const std::string& task,
           int64_t context, const ExerciseScore& s) {
  if (!f.json) {
    return write_stdout(
        fmt::format("{:<36} {:>6} {:<8} {:>6} of {:<6} {:6.2f} %  tokens {:.2f} %\n", task, context,
                    attention_name(o.policy.kind), s.right, s.answers,
                    100 * share(s.right, s.answers), 100 * share(s.right_tokens, s.answer_tokens)));
  }
  const Json line{{"task", task},
                  {"context", context},
                  {"attention", attention_name(o.policy.kind)},
                  {"index_topk", o.policy.topk},
                  {"precision", precision_name(f.model.runs_in)},
                  {"seed", f.seed},
                  {"first_sequence", f.first},
                  {"sequences", s.sequences},
                  {"tokens", s.tokens},
                  {"answers", s.answers},
                  {"right", s.right},
                  {"exact_match", share(s.right, s.answers)},
                  {"answer_tokens", s.answer_tokens},
                  {"right_tokens", s.right_tokens},
                  {"stood_before", s.stood},
                  {"beyond_topk", s.far},
                  {"results", s.results}};
  write_stdout(line.dump() + "\n");
}

int run_eval_exercises(const EvalExercisesFlags& f) {
  const auto context = f.model.make_context();
  const auto model = f.model.load();
  f.model.place(*context, *model);
  const auto tokenizer = load_tokenizer(f.model.folder);
  if (!tokenizer) throw InputError(f.model.folder + ": no tokenizer.json");
  std::vector<SyntheticTask> tasks;
  for (const std::string& text : f.tasks) {
    tasks.emplace_back(task_from_text(text), *tokenizer, kEndToken);
  }
  ExerciseOptions options = f.options;
  options.policy = f.model.policy(model->config());
  options.cache = f.model.cache_options();
  const bool prints = model->group().rank() == 0;
  Progress progress("answering",
                    f.sequences * static_cast<int64_t>(tasks.size() * f.contexts.size()), prints);
  // Refuses a length before anything is printed.
  ExerciseGrader(*context, *model, options,
                 *std::max_element(f.contexts.begin(), f.contexts.end()));
  for (const int64_t length : f.contexts) {
    ExerciseGrader grader(*context, *model, options, length);
    for (size_t i = 0; i < tasks.size(); ++i) {
      const ExerciseScore s =
          grader.grade(tasks[i], f.seed, f.first, f.sequences, [&](int64_t n) { progress.add(n); });
      progress.finish();
      if (prints) print(f, options, f.tasks[i], length, s);
    }
  }
  f.model.explain(*context);
  return 0;
}

}  // namespace

void add_eval_exercises(CLI::App& eval, CommandBody& chosen) {
  const auto f = std::make_shared<EvalExercisesFlags>();
  CLI::App* c = eval.add_subcommand("exercises", "Exact answers to the tasks that training makes");
  f->model.add_to(*c);
  c->add_option("--task", f->tasks,
                "A task of docs/training.md with its settings; may be repeated. All of them unless "
                "given")
      ->capture_default_str();
  c->add_option("--context", f->contexts, "Tokens of a sequence, separated by commas")
      ->delimiter(',')
      ->check(CLI::Range(16, 1 << 28))
      ->capture_default_str();
  c->add_option("--sequences", f->sequences, "Of each task and length")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  c->add_option("--first-sequence", f->first, "Number of the first one")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  c->add_option("--seed", f->seed, "Exercises are a function of this seed")->capture_default_str();
  c->add_option("--batch-tokens", f->options.batch_tokens, "Tokens of one forward pass")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  c->add_flag("--json", f->json, "One JSON object a line, with every answer right or wrong");
  c->footer(
      "Recall, needles and variables fill a sequence; the others are short, and many share one.\n"
      "No exercise is one that training or its validation has drawn.\n\n"
      "Examples:\n"
      "  tamis eval exercises -m runs/first/sparse\n"
      "  tamis eval exercises -m DIR --task needle:keys=4,queries=4 --task induction:words=256 \\\n"
      "    --context 1024,4096 --attention window --index-topk 256 --json");
  c->callback([f, &chosen] { chosen = [f] { return run_eval_exercises(*f); }; });
}

}  // namespace tamis::cli
