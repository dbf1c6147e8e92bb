// `tamis convert`: a checkpoint into another layout or other number formats.
//
//   ConvertOptions options;
//   options.in = "DeepSeek-V3.2";
//   options.out = "v32-mp8";
//   options.model_parallel = 8;
//   const ConvertReport report = convert(options);
//
// Tensors are streamed: memory stays far under the largest tensor. Files appear under their final
// names whole or not at all, and a run that was killed goes on where it stopped:
// OUT/tamis-convert.json records the finished files with their checksums. docs/formats/per-rank.md,
// docs/formats/quantised.md and docs/formats/difference.md describe what is written.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace tamis {

enum class NumberFormat { kKeep, kBf16, kFp8, kInt8, kInt4 };

struct ConvertOptions {
  std::string in, out;
  int model_parallel = 0;  // > 0: to the demo's layout for that many ranks
  NumberFormat to = NumberFormat::kKeep;
  std::string difference_from;      // a folder: OUT gets what IN differs from it by
  int difference_bits = 2;          // of a value of it, 1 to 8
  std::string add;                  // a file of such a difference: OUT gets IN with it added
  bool power_of_two_scales = true;  // of kFp8
  bool keep_unknown = false;        // copy tensors that are not in the table, with a warning
  bool force = false;               // replace what an earlier save left in OUT
  bool manifest = false;            // write MANIFEST.json (not for the demo's layout)
  bool follow_links = false;        // see Checkpoint::Options
  int threads = 0;                  // 0: one per core
  int64_t shard_bytes = 5'000'000'000;
  // Called now and then with the bytes of tensors written so far and in all; may be empty.
  std::function<void(int64_t done, int64_t total)> progress;
  // One line about something the user should know; may be empty.
  std::function<void(const std::string& line)> note;
};

// The squares of what rounding changed, and of what was there.
struct RoundingError {
  int64_t tensors = 0;
  int64_t elements = 0;
  double error_squares = 0;
  double weight_squares = 0;

  void add(const RoundingError& other);
  double relative_rms() const;  // 0 if there was nothing but zeros
};

struct ConvertReport {
  std::string layout_in, layout_out;  // "huggingface", "per-rank", "difference"
  int ranks = 0;                      // of the per-rank side
  int64_t tensors = 0;                // written, scales included
  int64_t files = 0;                  // weight files
  int64_t files_resumed = 0;          // of them, finished by an earlier run
  int64_t bytes = 0;                  // of all tensors in OUT
  double seconds = 0;
  int64_t left_out = 0;                         // tensors of multi-token-prediction layers
  std::map<std::string, RoundingError> errors;  // by kind, the name within its layer
};

// InputError if IN is damaged, unknown, cannot be cut into that many ranks, or OUT holds something
// else; UsageError for options that contradict each other; DeviceError if the disk is full or
// fails.
ConvertReport convert(const ConvertOptions& options);

}  // namespace tamis
