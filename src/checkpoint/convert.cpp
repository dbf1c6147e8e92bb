#include "checkpoint/convert.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <set>
#include <thread>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "checkpoint/convert_folder.h"
#include "checkpoint/convert_plan.h"
#include "checkpoint/convert_writer.h"
#include "checkpoint/difference.h"
#include "checkpoint/manifest.h"

namespace tamis {
namespace {

constexpr int64_t kMaxSideFile = 256 << 20;

// What options.difference_from and options.add name, beside IN.
void open_others(const ConvertOptions& options, ConvertSource* source) {
  if (!options.difference_from.empty()) {
    Checkpoint::Options links;
    links.follow_links = options.follow_links;
    source->base.emplace(Checkpoint::open(options.difference_from, links));
  }
  if (options.add.empty()) return;
  std::error_code error;
  const bool folder = std::filesystem::is_directory(options.add, error);
  source->difference.emplace(folder ? options.add + "/" + std::string(kDifferenceName)
                                    : options.add);
}

ConvertPlan make_plan(const ConvertSource& source, const ConvertOptions& options) {
  const bool with_difference = source.base || source.difference;
  if (with_difference && (options.model_parallel != 0 || options.to != NumberFormat::kKeep ||
                          (source.base && source.difference))) {
    throw UsageError(
        "one step at a time: --difference-from and --add go with neither --to, --model-parallel "
        "nor each other");
  }
  if (options.model_parallel != 0 && options.to != NumberFormat::kKeep) {
    throw UsageError("one step at a time: first --to, then --model-parallel on its result");
  }
  if (!source.checkpoint) {
    if (options.model_parallel != 0 || options.to != NumberFormat::kKeep || with_difference) {
      throw UsageError(source.folder +
                       ": holds per-rank files; convert them to the Hugging Face "
                       "layout first, without other options");
    }
    return plan_from_ranks(source, options);
  }
  if (options.model_parallel != 0) {
    if (options.manifest) throw UsageError("--manifest is for the Hugging Face layout");
    return plan_to_ranks(source, options);
  }
  if (options.to != NumberFormat::kKeep) return plan_quantise(source, options);
  if (source.base) return plan_difference(source, options);
  if (source.difference) return plan_add(source, options);
  throw UsageError(
      "nothing to do: give --to FORMAT, --model-parallel N, --difference-from BASE or --add FILE");
}

std::set<std::string> names_of(const ConvertPlan& plan) {
  std::set<std::string> names{std::string(kConvertRecordName), std::string(kManifestName)};
  for (const ConvertFile& file : plan.files) names.insert(file.name);
  for (const SideFile& file : plan.side_files) names.insert(file.name);
  return names;
}

class Conversion {
 public:
  Conversion(const ConvertSource& source, const ConvertOptions& options, const ConvertPlan& plan)
      : source_(source),
        options_(options),
        plan_(plan),
        folder_(options.out, source.folder),
        pool_(options.threads > 0
                  ? options.threads
                  : std::max(1, static_cast<int>(std::thread::hardware_concurrency()))) {}

  ConvertReport run() {
    ConvertRecord record =
        folder_.claim(start_record(source_, options_), names_of(plan_), options_.force);
    find_finished(&record);
    folder_.check_space(total_ - done_);
    for (const ConvertFile& file : plan_.files) {
      if (record.finished.count(file.name) == 0) {
        record.finished[file.name] = write_convert_file(context(), folder_.path(), file);
        save_record(folder_.path(), record);
      }
      for (const auto& [kind, error] : record.finished[file.name].errors) {
        report_.errors[kind].add(error);
      }
    }
    for (const SideFile& file : plan_.side_files) write_side_file(file);
    if (options_.manifest) {
      save_manifest(folder_.path(),
                    compute_manifest(Checkpoint::open(folder_.path()), [](int64_t, int64_t) {}));
    }
    return std::move(report_);
  }

 private:
  ConvertContext context() {
    return {&source_, &options_, &pool_, [this](int64_t bytes) {
              done_ += bytes;
              if (options_.progress) options_.progress(done_, total_);
            }};
  }

  // Keeps of the record what stands on the disk as it says.
  void find_finished(ConvertRecord* record) {
    for (const ConvertFile& file : plan_.files) {
      const int64_t bytes = file.bytes();
      total_ += bytes;
      report_.tensors += static_cast<int64_t>(file.specs().size());
      if (is_finished(folder_.path(), file.name, *record)) {
        ++report_.files_resumed;
        done_ += bytes;
      } else {
        record->finished.erase(file.name);
      }
    }
    report_.files = static_cast<int64_t>(plan_.files.size());
    report_.bytes = total_;
  }

  void write_side_file(const SideFile& file) const {
    const std::string path = folder_.path() + "/" + file.name;
    if (file.source_path.empty()) return write_file_atomically(path, file.text);
    write_file_atomically(path, read_text_file(file.source_path, kMaxSideFile));
  }

  const ConvertSource& source_;
  const ConvertOptions& options_;
  const ConvertPlan& plan_;
  ConvertFolder folder_;
  ThreadPool pool_;
  ConvertReport report_;
  int64_t done_ = 0, total_ = 0;
};

}  // namespace

void RoundingError::add(const RoundingError& other) {
  tensors += other.tensors;
  elements += other.elements;
  error_squares += other.error_squares;
  weight_squares += other.weight_squares;
}

double RoundingError::relative_rms() const {
  return weight_squares > 0 ? std::sqrt(error_squares / weight_squares) : 0;
}

ConvertReport convert(const ConvertOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  ConvertSource source = open_convert_source(options.in, options.follow_links);
  open_others(options, &source);
  const ConvertPlan plan = make_plan(source, options);
  for (const std::string& note : plan.notes) {
    if (options.note) options.note(note);
  }
  ConvertReport report = Conversion(source, options, plan).run();
  report.layout_in = source.checkpoint ? "huggingface" : "per-rank";
  report.layout_out = plan.layout_out;
  report.ranks = plan.ranks;
  report.left_out = plan.left_out;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace tamis
