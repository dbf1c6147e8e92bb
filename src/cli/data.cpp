// tamis data: text to token shards for training.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/commands.h"
#include "cli/support.h"
#include "train/token_data.h"

namespace tamis::cli {
namespace {

int run_build(const DataBuildOptions& options) {
  std::unique_ptr<Progress> shown;
  int64_t last = 0;
  const DataBuildResult r = build_data(options, [&](int64_t done, int64_t total) {
    if (!shown) shown = std::make_unique<Progress>("tokenizing", total, true);
    shown->add(done - last);
    last = done;
  });
  if (shown) shown->finish();
  write_stdout(
      fmt::format("{} documents, {} tokens of {} bytes, {} shards, {} documents skipped (not "
                  "UTF-8)\n",
                  r.documents, r.tokens, r.bytes, r.shards, r.skipped));
  return 0;
}

}  // namespace

void add_data(CLI::App& app, CommandBody& chosen) {
  CLI::App* data = app.add_subcommand("data", "Prepare text for training");
  data->require_subcommand(1);
  CLI::App* build = data->add_subcommand("build", "Text files to a folder of token shards");
  auto options = std::make_shared<DataBuildOptions>();
  build->add_option("-t,--tokenizer", options->tokenizer, "Folder with the tokenizer.json")
      ->required();
  build->add_option("-o,--out", options->out, "The folder to make")->required();
  build
      ->add_option("inputs", options->inputs,
                   "Files, or folders of files: NAME.jsonl has a document in the field \"text\" of "
                   "each line, any other file is one document")
      ->required();
  build->add_option("--end-token", options->end_token, "The token that ends a document")
      ->capture_default_str();
  build->add_flag("--chat", options->chat,
                  "The inputs are conversations: each line of NAME.jsonl an array of messages, or "
                  "an object with \"messages\" and \"tools\"; for stages of kind sft");
  build->add_option("--chat-format", options->chat_format,
                    "How conversations are written, if not as the tokenizer's folder says: v3.1, "
                    "v3.1-plain, v3.2-exp or v3.2");
  build->footer(
      "Examples:\n"
      "  tamis data build --chat -t models/tamis-mini -o chats chats.jsonl\n"
      "  tamis data build -t models/tamis-mini -o data /usr/share/doc/bash notes.jsonl");
  build->callback([options, &chosen] { chosen = [options] { return run_build(*options); }; });
}

}  // namespace tamis::cli
