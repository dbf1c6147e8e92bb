// tamis convert: layouts and number formats of checkpoints.
#include "checkpoint/convert.h"

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/support.h"

namespace tamis::cli {
namespace {

constexpr char kExamples[] = R"(
Examples:
  tamis convert DeepSeek-V3.2 v32-mp8 --model-parallel 8   per-rank files of the public demo
  tamis convert v32-mp8 v32-again                          and back, bit for bit
  tamis convert DeepSeek-V3.2 v32-bf16 --to bf16           fp8 weights to bf16
  tamis convert models/tamis-mini mini-int8 --to int8      one scale per 32 weights
  tamis convert TUNED diff --difference-from BASE          a variant of a model in 2 bits a weight
  tamis convert BASE tuned --add diff                      and the variant again, nearly

A run that was stopped goes on where it was when the same command is given again.
Exit codes: 0 done, 1 the input was wrong, 2 wrong usage, 3 the machine failed (disk full).
)";

// Progress on stderr, once a conversion has taken two seconds: in place on a terminal, else a line
// every few seconds.
class ProgressLine {
 public:
  ProgressLine() : start_(Clock::now()), terminal_(::isatty(STDERR_FILENO) == 1) {}

  void update(int64_t done, int64_t total) {
    const double seconds = seconds_since(start_);
    if (first_ < 0) first_ = done;
    if (seconds < 2 || (shown_ && seconds_since(last_) < (terminal_ ? 0.2 : 5.0))) return;
    const double rate = static_cast<double>(done - first_) / seconds;
    const double left = rate > 0 ? static_cast<double>(total - done) / rate : 0;
    const std::string text = fmt::format(
        "{:5.1f} %  {:.2f} of {:.2f} GB  {:.2f} GB/s  {} left",
        total > 0 ? 100.0 * static_cast<double>(done) / static_cast<double>(total) : 100,
        static_cast<double>(done) / 1e9, static_cast<double>(total) / 1e9, rate / 1e9,
        duration(left));
    fmt::print(stderr, "{}{}{}", terminal_ ? "\r" : "", text, terminal_ ? "\x1b[K" : "\n");
    std::fflush(stderr);
    last_ = Clock::now();
    shown_ = true;
  }

  void end() {
    if (shown_ && terminal_) fmt::print(stderr, "\r\x1b[K");
    shown_ = false;
  }

 private:
  using Clock = std::chrono::steady_clock;

  static double seconds_since(Clock::time_point t) {
    return std::chrono::duration<double>(Clock::now() - t).count();
  }

  static std::string duration(double seconds) {
    const auto s = static_cast<int64_t>(seconds + 0.5);
    if (s < 60) return fmt::format("{} s", s);
    if (s < 3600) return fmt::format("{} min {:02} s", s / 60, s % 60);
    return fmt::format("{} h {:02} min", s / 3600, s % 3600 / 60);
  }

  Clock::time_point start_, last_;
  bool terminal_ = false;
  bool shown_ = false;
  int64_t first_ = -1;
};

OrderedJson report_json(const ConvertOptions& options, const ConvertReport& report) {
  OrderedJson errors = OrderedJson::object();
  for (const auto& [kind, error] : report.errors) {
    errors[kind] = {{"tensors", error.tensors},
                    {"elements", error.elements},
                    {"relative_rms", error.relative_rms()}};
  }
  return {{"in", options.in},
          {"out", options.out},
          {"layout_in", report.layout_in},
          {"layout_out", report.layout_out},
          {"ranks", report.ranks},
          {"tensors", report.tensors},
          {"tensors_left_out", report.left_out},
          {"files", report.files},
          {"files_resumed", report.files_resumed},
          {"bytes", report.bytes},
          {"seconds", report.seconds},
          {"errors", errors}};
}

std::string report_text(const ConvertOptions& options, const ConvertReport& report) {
  std::string text =
      fmt::format("{}: {} tensors in {} files, {:.3f} GB, {:.1f} s", options.out, report.tensors,
                  report.files, static_cast<double>(report.bytes) / 1e9, report.seconds);
  if (report.files_resumed > 0) {
    text += fmt::format(" ({} files were finished before)", report.files_resumed);
  }
  text += '\n';
  if (report.errors.empty()) return text;
  text += fmt::format("{:<46} {:>8} {:>16}\n", "kind", "tensors", "relative error");
  for (const auto& [kind, error] : report.errors) {
    text += fmt::format("{:<46} {:>8} {:>16.3e}\n", kind, error.tensors, error.relative_rms());
  }
  return text;
}

int run_convert(ConvertOptions options, bool json) {
  ProgressLine line;
  options.progress = [&line](int64_t done, int64_t total) { line.update(done, total); };
  options.note = [](const std::string& note) { log_warning(note); };
  ConvertReport report;
  try {
    report = convert(options);
  } catch (...) {
    line.end();
    throw;
  }
  line.end();
  write_stdout(json ? report_json(options, report).dump(2) + "\n" : report_text(options, report));
  return 0;
}

struct ConvertFlags {
  ConvertOptions options;
  std::string to;
  std::string scale_format = "ue8m0";
  bool json = false;
};

NumberFormat format_named(const std::string& name) {
  if (name == "bf16") return NumberFormat::kBf16;
  if (name == "fp8") return NumberFormat::kFp8;
  if (name == "int8") return NumberFormat::kInt8;
  return name == "int4" ? NumberFormat::kInt4 : NumberFormat::kKeep;
}

}  // namespace

void add_convert(CLI::App& app, CommandBody& chosen) {
  CLI::App* command = app.add_subcommand(
      "convert", "Change the layout of a checkpoint, or the number format of its weights");
  const auto flags = std::make_shared<ConvertFlags>();
  ConvertOptions& options = flags->options;
  command->add_option("IN", options.in, "folder to read; its layout is found out")
      ->type_name("DIR")
      ->required();
  command->add_option("OUT", options.out, "folder to write, empty or not there yet")
      ->type_name("DIR")
      ->required();
  command
      ->add_option("--model-parallel", options.model_parallel,
                   "write model{rank}-mp{N}.safetensors for N ranks")
      ->type_name("N")
      ->check(CLI::Range(1, 1024));
  command->add_option("--to", flags->to, "format of the weights: bf16, fp8, int8 or int4")
      ->type_name("FORMAT")
      ->check(CLI::IsMember({"bf16", "fp8", "int8", "int4"}));
  command
      ->add_option("--difference-from", options.difference_from,
                   "write OUT/difference.safetensors: what IN adds to this model of the same shape")
      ->type_name("BASE");
  command->add_option("--bits", options.difference_bits, "bits of a weight in --difference-from")
      ->type_name("N")
      ->capture_default_str()
      ->check(CLI::Range(1, 8))
      ->needs("--difference-from");
  command->add_option("--add", options.add, "add a difference, file or its folder, to IN, its base")
      ->type_name("FILE");
  command->add_option("--scale-format", flags->scale_format, "scales of fp8: float or ue8m0")
      ->type_name("S")
      ->capture_default_str()
      ->check(CLI::IsMember({"float", "ue8m0"}));
  command->add_flag("--keep-unknown", options.keep_unknown,
                    "copy tensors of unknown names as they are");
  command->add_flag("--manifest", options.manifest, "write MANIFEST.json, a checksum per tensor");
  command->add_flag("--force", options.force, "replace the weights that lie in OUT");
  command->add_flag("--follow-links", options.follow_links,
                    "read links that lead out of the folder");
  command->add_option("--threads", options.threads, "threads that quantise; 0: one per core")
      ->check(CLI::Range(0, 1024));
  command->add_option("--shard-bytes", options.shard_bytes, "bytes of tensors per file")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command->add_flag("--json", flags->json, "print the summary as JSON");
  command->footer(kExamples);
  command->callback([flags, &chosen] {
    flags->options.to = format_named(flags->to);
    flags->options.power_of_two_scales = flags->scale_format == "ue8m0";
    chosen = [flags] { return run_convert(flags->options, flags->json); };
  });
}

}  // namespace tamis::cli
