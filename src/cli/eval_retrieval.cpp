// tamis eval retrieval: does the model find what stands far back in its prompt?
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
#include "engine/prompt.h"
#include "eval/retrieval.h"
#include "eval/retrieval_tasks.h"
#include "text/chat.h"

namespace tamis::cli {
namespace {

constexpr int64_t kMaxTextBytes = int64_t{1} << 30;

struct EvalRetrievalFlags {
  ModelFlags model;
  RetrievalOptions options;
  std::vector<std::string> tasks{"kv", "needle"};
  std::vector<int64_t> contexts{1024, 2048, 4096};
  int64_t cases = 100, first = 0;
  uint64_t seed = 1;
  std::string text;
  bool json = false;
};

// The results of one task at one length.
struct Cell {
  int64_t cases = 0, right = 0, tokens = 0;
  Json wrong = Json::array();
};

// A case as the model gets it: the rendered chat, and the answer with the end of text.
struct Encoded {
  std::vector<int32_t> prompt, answer;
};

class Encoder {
 public:
  Encoder(const std::string& folder, const Tokenizer& tokenizer, const ModelConfig& config)
      : format_(detect_chat_format(folder)), tokenizer_(tokenizer) {
    if (config.eos_ids.empty()) throw InputError(folder + ": config.json names no eos_token_id");
    eos_ = static_cast<int32_t>(config.eos_ids.front());
  }

  Encoded encode(const RetrievalCase& c) const {
    ChatMessage message;
    message.content = c.question;
    message.has_content = true;
    Encoded e;
    e.prompt = encode_chat(tokenizer_, render_pieces(format_, {message}, RenderOptions()));
    e.answer = tokenizer_.encode(c.answer, SpecialTokens::kPlain);
    e.answer.push_back(eos_);
    return e;
  }

 private:
  ChatFormat format_;
  const Tokenizer& tokenizer_;
  int32_t eos_;
};

Cell run_cell(const EvalRetrievalFlags& f, const RetrievalCases& cases, const Encoder& encoder,
              RetrievalTask task, int64_t context, AnswerChecker& checker, Progress& progress) {
  constexpr int64_t kAround = 24;  // tokens of the chat format and of the answer
  Cell cell;
  for (int64_t i = f.first; i < f.first + f.cases; ++i) {
    const RetrievalCase c = cases.make(task, context - kAround, i);
    const Encoded e = encoder.encode(c);
    const int64_t right = checker.right_tokens(e.prompt, e.answer);
    ++cell.cases;
    cell.tokens += static_cast<int64_t>(e.prompt.size());
    if (right == static_cast<int64_t>(e.answer.size())) {
      ++cell.right;
    } else {
      cell.wrong.push_back({{"case", i}, {"answer", c.answer}, {"depth", c.depth}});
    }
    progress.add(1);
  }
  return cell;
}

void print(const EvalRetrievalFlags& f, const RetrievalOptions& o, RetrievalTask task,
           int64_t context, const Cell& c) {
  if (f.json) {
    const Json line{{"task", retrieval_task_name(task)},
                    {"context", context},
                    {"attention", attention_name(o.policy.kind)},
                    {"index_topk", o.policy.topk},
                    {"precision", precision_name(f.model.runs_in)},
                    {"cases", c.cases},
                    {"right", c.right},
                    {"exact_match", static_cast<double>(c.right) / static_cast<double>(c.cases)},
                    {"prompt_tokens", c.tokens},
                    {"wrong", c.wrong}};
    return write_stdout(line.dump() + "\n");
  }
  write_stdout(fmt::format("{:<8} {:>8} {:<8} {:>6} of {}\n", retrieval_task_name(task), context,
                           attention_name(o.policy.kind), c.right, c.cases));
}

int run_eval_retrieval(const EvalRetrievalFlags& f) {
  const auto context = f.model.make_context();
  const auto model = f.model.load();
  f.model.place(*context, *model);
  const auto tokenizer = load_tokenizer(f.model.folder);
  if (!tokenizer) throw InputError(f.model.folder + ": no tokenizer.json");
  RetrievalOptions options = f.options;
  options.policy = f.model.policy(model->config());
  options.cache = f.model.cache_options();
  std::vector<RetrievalTask> tasks;
  for (const std::string& name : f.tasks) tasks.push_back(retrieval_task_from_name(name));
  const bool needs_text = std::count(tasks.begin(), tasks.end(), RetrievalTask::kNeedle) > 0;
  if (needs_text && f.text.empty()) {
    throw UsageError("--text is needed: needles are hidden in it (or choose --task kv)");
  }
  const RetrievalCases cases(
      *tokenizer, f.text.empty() ? std::string("\n") : read_text_file(f.text, kMaxTextBytes),
      f.seed);
  const Encoder encoder(f.model.folder, *tokenizer, model->config());
  AnswerChecker checker(*context, *model, options,
                        *std::max_element(f.contexts.begin(), f.contexts.end()));
  const bool prints = model->group().rank() == 0;
  Progress progress("answering", f.cases * static_cast<int64_t>(tasks.size() * f.contexts.size()),
                    prints);
  for (const RetrievalTask task : tasks) {
    for (const int64_t length : f.contexts) {
      const Cell cell = run_cell(f, cases, encoder, task, length, checker, progress);
      progress.finish();
      if (prints) print(f, options, task, length, cell);
    }
  }
  f.model.explain(*context);
  return 0;
}

}  // namespace

void add_eval_retrieval(CLI::App& eval, CommandBody& chosen) {
  const auto f = std::make_shared<EvalRetrievalFlags>();
  CLI::App* c = eval.add_subcommand("retrieval", "Exact answers to questions about long prompts");
  f->model.add_to(*c);
  c->add_option("--task", f->tasks, "kv, needle or both, separated by a comma")
      ->delimiter(',')
      ->capture_default_str();
  c->add_option("--context", f->contexts, "Lengths of prompt and answer, separated by commas")
      ->delimiter(',')
      ->check(CLI::Range(96, 1 << 28))
      ->capture_default_str();
  c->add_option("--cases", f->cases, "Questions for each task and length")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  c->add_option("--first-case", f->first, "Number of the first question")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  c->add_option("--seed", f->seed, "Questions are a function of this seed")->capture_default_str();
  c->add_option("--text", f->text, "The text in which needles are hidden");
  c->add_option("--chunk", f->options.forward, "Tokens of one forward pass")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  c->add_flag("--json", f->json, "One JSON object a line, with the questions answered wrong");
  c->footer(
      "An answer counts if every token of it, the end of text included, is the most likely one.\n\n"
      "Examples:\n"
      "  tamis eval retrieval -m models/tamis-mini --text notes.txt --cases 20\n"
      "  tamis eval retrieval -m DIR --task kv --context 8192,32768 --attention window --json");
  c->callback([f, &chosen] { chosen = [f] { return run_eval_retrieval(*f); }; });
}

}  // namespace tamis::cli
