#include "cli/speculation_flags.h"

#include <CLI/CLI.hpp>

namespace tamis::cli {

void SpeculationFlags::add_to(CLI::App& app) {
  app.add_option("--speculative", method,
                 "off, or mtp: the checkpoint's multi-token-prediction layer guesses tokens that "
                 "one pass then checks; the answer stays the same")
      ->check(CLI::IsMember({"off", "mtp"}))
      ->capture_default_str();
  app.add_option("--num-speculative-tokens", tokens, "Tokens that mtp guesses ahead")
      ->check(CLI::Range(int64_t{1}, kMaxSpeculation))
      ->capture_default_str();
}

void SpeculationFlags::apply(EngineOptions& options) const {
  options.cache.with_mtp = on();
  options.speculative_tokens = on() ? tokens : 0;
}

}  // namespace tamis::cli
