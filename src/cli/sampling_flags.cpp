#include "cli/sampling_flags.h"

#include <CLI/CLI.hpp>

namespace tamis::cli {

void SamplingFlags::add_to(CLI::App& app) {
  app.add_option("-n,--max-tokens", max_tokens, "Tokens to generate at most")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  app.add_option("--temperature", temperature, "0 is greedy; default from generation_config.json");
  app.add_option("--top-p", top_p, "Keep the most likely tokens up to this probability");
  app.add_option("--top-k", top_k, "Keep this many most likely tokens; 0 keeps all");
  app.add_option("--min-p", min_p, "Drop tokens below this share of the most likely one");
  app.add_option("--repetition-penalty", repetition_penalty, "Above 1 discourages seen tokens");
  app.add_option("--seed", seed, "Seed of the draws")->capture_default_str();
  app.add_option("--logprobs", logprobs, "With --json: this many alternatives for each token")
      ->check(CLI::Range(0, 20));
  app.add_option("--stop", stop, "Stop at this text (may be given several times)")
      ->take_all()
      ->allow_extra_args(false);
  app.add_flag("--ignore-eos", ignore_eos, "Go on past the end of text");
}

void SamplingFlags::apply(const GenerationDefaults& defaults, Request& request) const {
  SamplingParams& s = request.sampling;
  s = defaults.sampling;
  s.temperature = temperature.value_or(s.temperature);
  s.top_p = top_p.value_or(s.top_p);
  s.top_k = top_k.value_or(s.top_k);
  s.min_p = min_p.value_or(s.min_p);
  s.repetition_penalty = repetition_penalty.value_or(s.repetition_penalty);
  s.seed = seed;
  s.top_logprobs = logprobs;
  s.logprob = logprobs > 0;
  request.max_tokens = max_tokens;
  if (!ignore_eos) request.stop_ids = defaults.eos_ids;
}

}  // namespace tamis::cli
