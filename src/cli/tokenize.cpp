// tamis tokenize: text to token ids and back.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/support.h"
#include "text/tokenizer.h"

namespace tamis::cli {
namespace {

struct Options {
  std::string model;
  bool decode = false, plain = false, skip_special = false;
};

constexpr const char* kExamples =
    "Examples:\n"
    "  echo -n 'Hello' | tamis tokenize -m models/tamis-mini\n"
    "  echo '[41, 264]' | tamis tokenize -m models/tamis-mini --decode\n"
    "  tamis tokenize -m models/tamis-mini --plain < question.txt\n\n"
    "Encoding reads UTF-8 and adds nothing: no beginning-of-sentence token, and a line end at the\n"
    "end of the input is part of the text. Exit codes: 0 done, 1 the input was wrong, 2 wrong "
    "usage.";

// A model folder, or the tokenizer.json itself.
Tokenizer load_tokenizer(const std::string& model) {
  const std::filesystem::path path(model);
  return Tokenizer::load(std::filesystem::is_directory(path) ? path / "tokenizer.json" : path);
}

std::vector<int32_t> parse_ids(std::string_view text) {
  const Json array = parse_json(text, "standard input");
  if (!array.is_array()) {
    throw InputError(
        fmt::format("standard input: want a JSON array of ids, found {}", array.type_name()));
  }
  std::vector<int32_t> ids;
  ids.reserve(array.size());
  for (const Json& id : array) {
    const bool fits = id.is_number_unsigned() && id.get<uint64_t>() <= INT32_MAX;
    if (!fits) {
      throw InputError(fmt::format("standard input: element {}: want an id, found {}", ids.size(),
                                   printable(id.dump())));
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

std::string as_json(const std::vector<int32_t>& ids) {
  fmt::memory_buffer out;
  out.push_back('[');
  for (size_t i = 0; i < ids.size(); ++i) {
    fmt::format_to(std::back_inserter(out), "{}{}", i == 0 ? "" : ",", ids[i]);
  }
  out.push_back(']');
  out.push_back('\n');
  return fmt::to_string(out);
}

int run_tokenize(const Options& options) {
  const Tokenizer tokenizer = load_tokenizer(options.model);
  const std::string input = read_stdin();
  if (options.decode) {
    write_stdout(tokenizer.decode(parse_ids(input), options.skip_special));
  } else {
    const auto mode = options.plain ? SpecialTokens::kPlain : SpecialTokens::kParse;
    write_stdout(as_json(tokenizer.encode(input, mode)));
  }
  return 0;
}

}  // namespace

void add_tokenize(CLI::App& app, CommandBody& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App* sub = app.add_subcommand(
      "tokenize", "Turn text on standard input into a JSON array of token ids, or back");
  sub->add_option("-m,--model", options->model, "Model folder, or its tokenizer.json")->required();
  CLI::Option* decode =
      sub->add_flag("--decode", options->decode, "Read a JSON array of ids, write their text");
  sub->add_flag("--plain", options->plain, "Encode added tokens in the text as ordinary text")
      ->excludes(decode);
  sub->add_flag("--skip-special", options->skip_special, "Leave special tokens out of the text")
      ->needs(decode);
  sub->footer(kExamples);
  sub->callback([options, &chosen] { chosen = [options] { return run_tokenize(*options); }; });
}

}  // namespace tamis::cli
