// tamis: DeepSeek Sparse Attention, from a checkpoint to an answer. See `tamis --help`.
#include <CLI/CLI.hpp>
#include <exception>
#include <iostream>
#include <new>

#include "base/error.h"
#include "cli/commands.h"

namespace tamis::cli {
namespace {

constexpr int kInputWrong = 1, kUsageWrong = 2, kMachineFailed = 3;

int report(const char* kind, const std::exception& e, int code) {
  std::cerr << "tamis: " << kind << e.what() << "\n";
  return code;
}

int run(int argc, char** argv) {
  CLI::App app("DeepSeek Sparse Attention: run, verify and convert DeepSeek-V3.2-family models.\n");
  app.name("tamis");
  app.set_version_flag("--version", "tamis " TAMIS_VERSION);
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  CommandBody chosen;
  add_bench(app, chosen);
  add_info(app, chosen);
  add_convert(app, chosen);
  add_generate(app, chosen);
  add_render(app, chosen);
  add_tokenize(app, chosen);
  add_trace(app, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    const int code = app.exit(e);
    return code == 0 ? 0 : kUsageWrong;
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
