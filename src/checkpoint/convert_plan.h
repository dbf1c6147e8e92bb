// What a conversion will write, decided from headers alone before the first byte: files, their
// tensors, and where each tensor's bytes come from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/function_ref.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/convert.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_roles.h"

namespace tamis {

// An opened source: one of the two layouts. Everything a plan points at lives here.
struct ConvertSource {
  std::string folder;
  std::string config_text;
  std::optional<Checkpoint> checkpoint;       // Hugging Face layout
  std::vector<SafetensorsFile> ranks;         // the demo's: file i is rank i
  std::optional<Checkpoint> base;             // of options.difference_from
  std::optional<SafetensorsFile> difference;  // of options.add

  void check_unchanged() const;
};

// InputError if the folder is neither layout, or both, or ranks are missing.
ConvertSource open_convert_source(const std::string& folder, bool follow_links);

// A rectangle of bytes in a source: `rows` runs of row_bytes, `stride` bytes apart.
struct CopyPiece {
  const std::byte* data = nullptr;
  int64_t rows = 1;
  int64_t row_bytes = 0;
  int64_t stride = 0;
};

// Tensors that are written together: one that is copied, or a weight with its scales.
struct ConvertUnit {
  std::vector<TensorSpec> outputs;
  // A copy: the pieces one after another, or side by side (row 0 of each piece, row 1 of each ...).
  std::vector<CopyPiece> pieces;
  bool side_by_side = false;
  // A weight that changes its format, by its name in the checkpoint; empty for a copy.
  std::string weight;
  NumberFormat format = NumberFormat::kKeep;  // that it gets
  std::string kind;                           // for the report: the name within its layer
  // Anything else: writes the outputs in pieces and says what rounding did. Empty for the others.
  std::function<RoundingError(ThreadPool& pool, FunctionRef<void(std::span<const std::byte>)> sink)>
      make;

  int64_t bytes() const;
};

struct ConvertFile {
  std::string name;
  std::vector<ConvertUnit> units;
  std::map<std::string, std::string> metadata = {{"format", "pt"}};

  std::vector<TensorSpec> specs() const;
  int64_t bytes() const;  // of the tensors
};

// A small file beside the weights: a copy of source_path, or else `text`.
struct SideFile {
  std::string name;
  std::string source_path;
  std::string text;
};

struct ConvertPlan {
  std::vector<ConvertFile> files;
  std::vector<SideFile> side_files;  // in the order of writing; the last ones complete the folder
  std::vector<std::string> notes;
  std::string layout_out;
  int ranks = 0;
  int64_t left_out = 0;
};

// Hugging Face layout to `options.model_parallel` ranks, and back.
ConvertPlan plan_to_ranks(const ConvertSource& source, const ConvertOptions& options);
ConvertPlan plan_from_ranks(const ConvertSource& source, const ConvertOptions& options);
// Hugging Face layout with weights in another format.
ConvertPlan plan_quantise(const ConvertSource& source, const ConvertOptions& options);
// Hugging Face layout to the difference from source.base, and with source.difference added.
ConvertPlan plan_difference(const ConvertSource& source, const ConvertOptions& options);
ConvertPlan plan_add(const ConvertSource& source, const ConvertOptions& options);

// Spreads units over files of about shard_bytes, layer by layer, names the files and adds the
// index.
void add_shards(std::vector<ConvertUnit> units, int64_t shard_bytes, ConvertPlan* plan);

// Puts units whose length is a multiple of 64 first, so that nearly all tensors start on a cache
// line.
void align(ConvertFile* file);

// The files of a source folder that go along, by name; weights, index, config.json and (unless the
// user trusts them) links left out.
std::vector<SideFile> side_files_of(const ConvertSource& source, const ConvertOptions& options,
                                    bool (*wanted)(std::string_view name));

// For a folder that stays in Hugging Face layout: all but what belongs to the old weights.
bool goes_along(std::string_view name);

// One unit that copies a whole tensor under another name.
ConvertUnit copy_unit(const Tensor& tensor, std::string name);

// An error about a tensor that the table does not know; a note if options.keep_unknown.
void report_unknown(const ConvertOptions& options, const std::string& folder, std::string_view name,
                    ConvertPlan* plan);

}  // namespace tamis
