// tamis render: the exact prompt text of a chat.
#include <CLI/CLI.hpp>
#include <memory>

#include "base/error.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/support.h"
#include "text/chat.h"

namespace tamis::cli {
namespace {

constexpr int64_t kMaxInputBytes = 256 << 20;

struct RenderFlags {
  std::string model;
  std::string format;
  std::string messages;
  std::string tools;
  bool thinking = false;
  bool no_generation_prompt = false;
  bool keep_thinking = false;
  int64_t context_messages = 0;
};

std::string read_input(const std::string& path) {
  return path == "-" ? read_stdin() : read_text_file(path, kMaxInputBytes);
}

std::string input_name(const std::string& path) { return path == "-" ? "standard input" : path; }

int run_render(const RenderFlags& flags) {
  if (flags.model.empty() == flags.format.empty()) {
    throw UsageError("render: give either -m DIR or --format");
  }
  if (flags.messages == "-" && flags.tools == "-") {
    throw UsageError("render: only one of --messages and --tools can read standard input");
  }
  const ChatFormat format =
      flags.format.empty() ? detect_chat_format(flags.model) : parse_chat_format(flags.format);
  ChatRequest request = parse_messages(read_input(flags.messages), input_name(flags.messages));
  RenderOptions options;
  options.thinking = flags.thinking;
  options.add_generation_prompt = !flags.no_generation_prompt;
  options.keep_thinking = flags.keep_thinking;
  options.context_messages = flags.context_messages;
  options.tools = flags.tools.empty()
                      ? std::move(request.tools)
                      : parse_tools(read_input(flags.tools), input_name(flags.tools));
  write_stdout(render_chat(format, request.messages, options));
  return 0;
}

}  // namespace

void add_render(CLI::App& app, CommandBody& chosen) {
  CLI::App* command = app.add_subcommand("render", "Print the exact prompt text of a chat");
  auto flags = std::make_shared<RenderFlags>();
  command->add_option("-m,--model", flags->model, "Checkpoint folder; its chat format is used");
  command->add_option("--format", flags->format, "Chat format, instead of a checkpoint's")
      ->check(CLI::IsMember({"v3.1", "v3.1-plain", "v3.2-exp", "v3.2"}));
  command
      ->add_option("--messages", flags->messages,
                   "JSON file: an array of messages, or an object with messages and tools; "
                   "- reads standard input")
      ->required();
  command->add_option("--tools", flags->tools, "JSON file with an array of tools");
  command->add_flag("--thinking", flags->thinking, "The answer shall begin with a thought");
  command->add_flag("--no-generation-prompt", flags->no_generation_prompt,
                    "End after the last message, without opening the answer");
  command->add_flag("--keep-thinking", flags->keep_thinking,
                    "v3.2: do not drop the thinking of earlier turns");
  command->add_option("--context-messages", flags->context_messages,
                      "Render only what follows the first N messages");
  command->footer(
      "The text goes to standard output as it is, with no newline added.\n\n"
      "Examples:\n"
      "  tamis render -m models/tamis-mini --messages chat.json\n"
      "  tamis render --format v3.2 --thinking --messages chat.json --tools tools.json\n"
      "  echo '[{\"role\":\"user\",\"content\":\"hello\"}]' | tamis render --format v3.1 "
      "--messages -");
  command->callback([flags, &chosen] { chosen = [flags] { return run_render(*flags); }; });
}

}  // namespace tamis::cli
