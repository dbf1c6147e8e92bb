// tamis chat: a conversation in the terminal.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/line_reader.h"
#include "cli/model_flags.h"
#include "cli/sampling_flags.h"
#include "cli/support.h"
#include "engine/engine.h"
#include "engine/prompt.h"
#include "engine/text_stream.h"
#include "text/output_parser.h"

namespace tamis::cli {
namespace {

constexpr const char* kHelp =
    "/think on|off  let the model think before it answers, or not\n"
    "/clear         forget the conversation\n"
    "/exit          leave (also Ctrl-D, or Ctrl-C twice)\n"
    "/help          this list\n"
    "A line that ends in \\ goes on in the next one. Ctrl-C stops an answer.\n";

constexpr const char *kDim = "\033[2m", *kPlain = "\033[0m";

struct ChatFlags {
  ModelFlags model;
  SamplingFlags sampling;
  std::string system;
  bool think = false, stats = false;
  int64_t context = 0, chunk = 512;
};

// Writes the parts of an answer as they come: thoughts dimmed on a terminal, between <think> and
// </think> elsewhere.
class AnswerPrinter {
 public:
  explicit AnswerPrinter(bool terminal) : terminal_(terminal) {}

  void print(const OutputEvent& e) {
    const bool thought = e.kind == OutputEvent::Kind::kReasoning;
    if (thought != in_thought_) switch_to(thought);
    write_stdout(terminal_ ? without_controls(e.text) : e.text);
  }

  void finish() {
    if (in_thought_) switch_to(false);
    write_stdout("\n");
  }

 private:
  void switch_to(bool thought) {
    in_thought_ = thought;
    if (thought) return write_stdout(terminal_ ? kDim : "<think>");
    write_stdout(terminal_ ? std::string(kPlain) + "\n" : "</think>\n");
  }

  // A model may write anything; a terminal would obey its escape sequences.
  static std::string without_controls(std::string text) {
    for (char& c : text) {
      const auto byte = static_cast<unsigned char>(c);
      if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f) c = '?';
    }
    return text;
  }

  bool terminal_, in_thought_ = false;
};

// The conversation and the engine that keeps its cache. Every turn renders the whole conversation
// anew; the engine finds the part that it has read already.
class Session {
 public:
  Session(const ChatFlags& f, const LoadedModel& model, KernelContext& context, Tokenizer tokenizer,
          Interrupts& interrupts)
      : flags_(f),
        tokenizer_(std::move(tokenizer)),
        format_(detect_chat_format(model.checkpoint().folder())),
        defaults_(read_generation_defaults(model.checkpoint(), model.config())),
        interrupts_(interrupts),
        printer_terminal_(::isatty(STDOUT_FILENO) == 1),
        engine_(model, context, engine_options(f, model)),
        thinking_(f.think) {
    clear();
  }

  void clear() {
    messages_.clear();
    if (!flags_.system.empty()) messages_.push_back(message(ChatRole::kSystem, flags_.system));
  }

  void set_thinking(bool on) { thinking_ = on; }

  // One turn. On an error the conversation is as it was before.
  void answer(const std::string& question) {
    const std::vector<ChatMessage> before = messages_;
    try {
      messages_.push_back(message(ChatRole::kUser, question));
      messages_.push_back(generate());
      ++turn_;
    } catch (...) {
      messages_ = before;
      throw;
    }
  }

 private:
  static ChatMessage message(ChatRole role, std::string text) {
    ChatMessage m;
    m.role = role;
    m.content = std::move(text);
    m.has_content = true;
    return m;
  }

  static EngineOptions engine_options(const ChatFlags& f, const LoadedModel& model) {
    EngineOptions o;
    o.policy = f.model.policy(model.config());
    o.cache = f.model.cache_options();
    o.chunk = f.chunk;
    o.max_sequences = 1;
    o.max_context = model.config().max_position;
    if (f.context > 0) o.max_context = std::min(o.max_context, f.context);
    // Room for the conversation and for what earlier ones left behind; memory is taken when used.
    o.cache.pages = pages_for(o.max_context) + pages_for(o.max_context) / 4 + 1;
    return o;
  }

  ChatMessage generate() {
    RenderOptions render;
    render.thinking = thinking_;
    const auto pieces = render_pieces(format_, messages_, render);
    Request request;
    request.prompt = encode_chat(tokenizer_, pieces);
    flags_.sampling.apply(defaults_, request);
    request.sampling.seed += turn_;
    const auto prompt = static_cast<int64_t>(request.prompt.size());
    OutputParser parser({format_, starts_in_thinking(pieces), /*tools=*/false});
    AnswerPrinter printer(printer_terminal_);
    ChatMessage reply = message(ChatRole::kAssistant, "");
    run(std::move(request), parser, printer, reply);
    printer.finish();
    if (flags_.stats) print_stats(prompt);
    return reply;
  }

  void run(Request request, OutputParser& parser, AnswerPrinter& printer, ChatMessage& reply) {
    TextStream text(tokenizer_, flags_.sampling.stop);
    std::vector<OutputEvent> parts;
    const auto show = [&] {
      for (const OutputEvent& e : parts) {
        printer.print(e);
        (e.kind == OutputEvent::Kind::kReasoning ? reply.reasoning_content : reply.content) +=
            e.text;
      }
      parts.clear();
    };
    const int64_t number = engine_.submit(std::move(request));
    start_ = std::chrono::steady_clock::now();
    tokens_ = cached_ = 0;
    std::vector<TokenEvent> events;
    while (!engine_.idle()) {
      engine_.step(events);
      cached_ = std::max(cached_, engine_.cached_tokens(number));
      if (interrupts_.pending()) engine_.cancel(number);
      for (const TokenEvent& e : events) {
        if (e.finish == FinishReason::kError) throw InputError(e.error);
        if (e.token.id < 0) continue;
        ++tokens_;
        if (e.finish != FinishReason::kStop) parser.push(text.push(e.token.id), parts);
        show();
        if (text.stopped()) engine_.cancel(number);
      }
    }
    parser.push(text.finish(), parts);
    parser.finish(parts);
    show();
  }

  void print_stats(int64_t prompt) const {
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start_;
    std::fprintf(stderr, "%lld prompt tokens, %lld of them reused, %lld tokens, %.2f s\n",
                 static_cast<long long>(prompt), static_cast<long long>(cached_),
                 static_cast<long long>(tokens_), seconds.count());
  }

  const ChatFlags& flags_;
  Tokenizer tokenizer_;
  ChatFormat format_;
  GenerationDefaults defaults_;
  Interrupts& interrupts_;
  bool printer_terminal_;
  Engine engine_;
  std::vector<ChatMessage> messages_;
  bool thinking_;
  uint64_t turn_ = 0;
  int64_t tokens_ = 0, cached_ = 0;
  std::chrono::steady_clock::time_point start_;
};

// Reads lines and carries out what they say.
class Shell {
 public:
  Shell(Session& session, Interrupts& interrupts)
      : session_(session), reader_(interrupts), terminal_(::isatty(STDIN_FILENO) == 1) {}

  void run() {
    note("/help lists the commands\n");
    std::string line;
    while (read(line)) {
      if (line.empty()) continue;
      if (line == "/exit") return;
      if (!command(line)) answer(line);
    }
  }

 private:
  void note(const char* text) const {
    if (terminal_) std::fputs(text, stderr);
  }

  // A line with the ones it is continued by; false at the end.
  bool read(std::string& line) {
    std::string part;
    line.clear();
    bool interrupted = false;
    note("> ");
    while (true) {
      switch (reader_.next(part)) {
        case LineKind::kEnd:
          note("\n");
          return !line.empty();
        case LineKind::kInterrupt:
          if (interrupted) return false;
          interrupted = true;
          line.clear();
          note("\nCtrl-C again leaves\n> ");
          break;
        case LineKind::kLine:
          line += part;
          if (line.empty() || line.back() != '\\') return true;
          line.back() = '\n';
          break;
      }
    }
  }

  // Whether the line was a command. "/usr/bin" is none: it has a second slash.
  bool command(const std::string& line) {
    if (line.front() != '/') return false;
    const std::string word = line.substr(0, line.find(' '));
    if (word.find('/', 1) != std::string::npos) return false;
    if (line == "/help") {
      write_stdout(kHelp);
    } else if (line == "/clear") {
      session_.clear();
    } else if (line == "/think on" || line == "/think off") {
      session_.set_thinking(line == "/think on");
    } else {
      complain("unknown command " + printable(line) + "; /help lists them");
    }
    return true;
  }

  // At a terminal an error ends the turn; a script shall not go on as if nothing had happened.
  void complain(const std::string& what) const {
    if (!terminal_) throw InputError(what);
    std::fprintf(stderr, "%s\n", what.c_str());
  }

  void answer(const std::string& line) {
    try {
      session_.answer(line);
    } catch (const InputError& e) {
      complain(e.what());
    }
  }

  Session& session_;
  LineReader reader_;
  bool terminal_;
};

int run_chat(const ChatFlags& f) {
  Interrupts interrupts;
  const auto context = f.model.make_context();
  const auto model = f.model.load();
  if (model->group().size() > 1) throw UsageError("chat: one rank only; the others have no input");
  auto tokenizer = load_tokenizer(f.model.folder);
  if (!tokenizer) throw InputError(f.model.folder + ": no tokenizer.json");
  f.model.place(*context, *model);
  Session session(f, *model, *context, std::move(*tokenizer), interrupts);
  Shell(session, interrupts).run();
  f.model.explain(*context);
  return 0;
}

}  // namespace

void add_chat(CLI::App& app, CommandBody& chosen) {
  const auto f = std::make_shared<ChatFlags>();
  f->sampling.max_tokens = 2048;
  CLI::App* c = app.add_subcommand("chat", "Talk to the model");
  c->add_option("--system", f->system, "The system message");
  c->add_flag("--think", f->think, "Let the model think before it answers");
  c->add_flag("--stats", f->stats, "After each answer, on stderr: tokens read, reused, written");
  c->add_option("--context", f->context, "Tokens of conversation at most; default the model's")
      ->check(CLI::Range(2, 1 << 30));
  c->add_option("--chunk", f->chunk, "Prompt tokens of one forward pass")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  f->sampling.add_to(*c);
  f->model.add_to(*c);
  c->footer(
      "At the prompt: /think on|off, /clear, /exit, /help. Lines are also read from a pipe, one\n"
      "turn each.\n\n"
      "Examples:\n"
      "  tamis chat -m models/tamis-mini\n"
      "  tamis chat -m DIR --system 'Answer briefly.' --think --temperature 0.6 --top-p 0.95");
  c->callback([f, &chosen] { chosen = [f] { return run_chat(*f); }; });
}

}  // namespace tamis::cli
