// tamis: DeepSeek Sparse Attention, from a checkpoint to an answer. See `tamis --help`.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <iostream>
#include <new>
#include <string>
#include <vector>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/configuration.h"
#include "comm/group.h"
#include "comm/launcher.h"

namespace tamis::cli {
namespace {

constexpr int kInputWrong = 1, kUsageWrong = 2, kMachineFailed = 3;

// Says what went wrong, then ends the other ranks, if any, before a Group of this one unwinds.
int report(const char* kind, const std::exception& e, int code) {
  std::string line = "tamis: ";
  if (!launcher_variable().empty()) line += "rank " + std::to_string(launcher_rank()) + ": ";
  std::cerr << line + kind + e.what() + "\n" << std::flush;
  abandon_world(code);
  return code;
}

// Of several ranks only rank 0 answers.
void quiet_other_ranks() {
  if (launcher_rank() > 0 && std::freopen("/dev/null", "w", stdout) == nullptr) {
    std::cerr << "tamis: cannot open /dev/null\n";
  }
}

// Commands that run no model are done by rank 0 alone: two ranks would write the same files.
bool is_for_rank_0_only(const CLI::App& app) {
  const std::string name = app.get_subcommands().front()->get_name();
  return name == "convert" || name == "data" || name == "info" || name == "render" ||
         name == "tokenize";
}

int run(int argc, char** argv) {
  quiet_other_ranks();
  CLI::App app("DeepSeek Sparse Attention: run, verify and convert DeepSeek-V3.2-family models.\n");
  app.name("tamis");
  app.set_version_flag("--version", "tamis " TAMIS_VERSION);
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  CommandBody chosen;
  Configuration configuration;
  add_bench(app, chosen);
  add_info(app, chosen);
  add_chat(app, chosen);
  add_convert(app, chosen);
  add_data(app, chosen);
  add_eval(app, chosen);
  add_generate(app, chosen);
  add_plan(app, chosen);
  add_render(app, chosen);
  add_serve(app, chosen);
  configuration.cover(*app.get_subcommand("serve"));
  add_tokenize(app, chosen);
  add_trace(app, chosen);
  add_train(app, chosen);
  add_verify(app, chosen);
  try {
    std::vector<std::string> arguments = configuration.extend({argv + 1, argv + argc});
    std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
    app.parse(std::move(arguments));
  } catch (const InputError& e) {
    return report("", e, kInputWrong);
  } catch (const CLI::ParseError& e) {
    const int code = app.exit(e);
    return code == 0 ? 0 : kUsageWrong;
  }
  if (launcher_rank() > 0 && is_for_rank_0_only(app)) return 0;
  if (configuration.print_wanted()) {
    std::cout << configuration.effective() << std::flush;
    return 0;
  }
  if (const std::string set = configuration.summary(); !set.empty()) {
    std::cerr << "tamis serve: " + set + "\n";
  }
  try {
    return chosen();
  } catch (const InputError& e) {
    return report("", e, kInputWrong);
  } catch (const UsageError& e) {
    return report("", e, kUsageWrong);
  } catch (const std::bad_alloc& e) {
    return report("out of memory: ", e, kMachineFailed);
  } catch (const std::exception& e) {
    return report("", e, kMachineFailed);
  }
}

}  // namespace
}  // namespace tamis::cli

int main(int argc, char** argv) { return tamis::cli::run(argc, argv); }
