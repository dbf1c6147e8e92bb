// Load and encoding times. From the root of the repository:
//
//   build/release/src/text/text_bench                           the bundled tokenizer
//   TOKENIZER=/path/tokenizer.json TEXT=/path/book.txt build/release/src/text/text_bench
//   (ulimit -s 256; build/.../text_bench --benchmark_filter=pathological)
//
// "pathological" are texts that made other tokenizers quadratic or overflow the stack; each is
// measured at 512 KiB and 1 MiB, so that t(2n)/t(n) can be read off.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <iterator>
#include <string>
#include <utility>

#include "base/json.h"
#include "text/tokenizer.h"

namespace tamis {
namespace {

constexpr std::pair<const char*, const char*> kClasses[] = {
    {"Z", "Z"},         {"space", " "},          {"dot", "."},
    {"digit", "1"},     {"cjk", "中"},           {"newline", "\n"},
    {"mark", "\u0301"}, {"underscore", "_"},     {"caret", "^"},
    {"a1", "a1"},       {"emoji", "\U0001F600"}, {"latin1", "\u00FF\u00C4"},
    {"bar", "<｜"},     {"blank_lines", " \n"}};

std::string from_environment(const char* variable, const char* otherwise) {
  const char* chosen = std::getenv(variable);
  return chosen != nullptr ? chosen : otherwise;
}

std::string path() { return from_environment("TOKENIZER", "models/tamis-mini/tokenizer.json"); }

std::string sample_text() {
  return read_text_file(from_environment("TEXT", "tests/golden/tokenizer/small_bpe.encode.jsonl"),
                        int64_t{1} << 30);
}

const Tokenizer& tokenizer() {
  static const Tokenizer loaded = Tokenizer::load(path());
  return loaded;
}

void encode(benchmark::State& state, const std::string& text) {
  tokenizer();  // loaded before the clock starts
  size_t ids = 0;
  for (auto _ : state) ids = tokenizer().encode(text, SpecialTokens::kParse).size();
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
  state.counters["ids"] = static_cast<double>(ids);
}

void load(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(Tokenizer::load(path()));
}
BENCHMARK(load)->Unit(benchmark::kMillisecond);

void pathological(benchmark::State& state) {
  const auto& [name, unit] = kClasses[state.range(0)];
  std::string text;
  while (static_cast<int64_t>(text.size()) < state.range(1)) text += unit;
  state.SetLabel(name);
  encode(state, text);
}
BENCHMARK(pathological)
    ->ArgsProduct({benchmark::CreateDenseRange(0, std::size(kClasses) - 1, 1), {1 << 19, 1 << 20}})
    ->Unit(benchmark::kMillisecond);

void encode_text(benchmark::State& state) { encode(state, sample_text()); }
BENCHMARK(encode_text)->Unit(benchmark::kMillisecond);

void decode_text(benchmark::State& state) {
  const std::string text = sample_text();
  const auto ids = tokenizer().encode(text, SpecialTokens::kPlain);
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer().decode(ids));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(text.size()));
}
BENCHMARK(decode_text)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace tamis
