#include "train/train_log.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"

namespace tamis {
namespace {

constexpr int64_t kMaxLog = int64_t{1} << 32;

// The lines of the log up to `step`. A last line that a kill cut short is no JSON and goes.
std::string lines_up_to(const std::string& text, int64_t step) {
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string line = text.substr(begin, end - begin);
    const Json json = Json::parse(line, nullptr, false);
    if (!json.is_object() || json.value("step", int64_t{0}) > step) break;
    kept += line + "\n";
    begin = end + 1;
  }
  return kept;
}

// JSON has no NaN.
OrderedJson number(double x) { return std::isfinite(x) ? OrderedJson(x) : OrderedJson(nullptr); }

}  // namespace

TrainLog::TrainLog(const std::string& path, int64_t step) : path_(path) {
  if (std::filesystem::exists(path)) {
    write_file_atomically(path, lines_up_to(read_text_file(path, kMaxLog), step));
  }
  out_.open(path, std::ios::app | std::ios::binary);
  if (!out_) throw_errno(path);
}

void TrainLog::add(const StepReport& r, const std::string& stage) {
  OrderedJson line = {{"step", r.step},
                      {"stage", stage},
                      {"stage_step", r.stage_step},
                      {"loss", number(r.loss)},
                      {"balance", number(r.balance)},
                      {"norm_model", number(r.norm_model)},
                      {"norm_indexer", number(r.norm_indexer)},
                      {"lr_model", r.lr_model},
                      {"lr_indexer", r.lr_indexer},
                      {"most_loaded", r.most_loaded},
                      {"tokens", r.tokens},
                      {"seconds", r.seconds},
                      {"flops", r.flops}};
  if (!r.kl.empty()) line["kl"] = r.kl;
  if (r.skipped) line["skipped"] = true;
  out_ << line.dump() << '\n' << std::flush;
  if (!out_) throw_errno(path_);
}

}  // namespace tamis
