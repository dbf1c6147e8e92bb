#include "checkpoint/convert_record.h"

#include <sys/stat.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"
#include "checkpoint/checksum.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxRecord = 64 << 20;
constexpr char kVersion[] = "tamis-convert-1";

// Of a file that is much larger than memory only what is cheap to read: its header, size and time.
std::string file_identity(const SafetensorsFile& file) {
  struct stat st {};
  if (::stat(file.path().c_str(), &st) != 0) throw_errno("stat of " + file.path());
  const auto header =
      std::span(file.file().data(), static_cast<size_t>(file.header().header_bytes));
  return fs::path(file.path()).filename().string() + " " + std::to_string(file.file().size()) +
         " " + std::to_string(st.st_mtim.tv_sec) + "." + std::to_string(st.st_mtim.tv_nsec) + " " +
         checksum_hex(header) + "\n";
}

std::string fingerprint(const ConvertSource& source) {
  std::string text = source.config_text + "\n";
  if (source.checkpoint) {
    for (const SafetensorsFile& shard : source.checkpoint->shards()) text += file_identity(shard);
  }
  for (const SafetensorsFile& rank : source.ranks) text += file_identity(rank);
  if (source.base) {
    for (const SafetensorsFile& shard : source.base->shards()) text += file_identity(shard);
  }
  if (source.difference) text += file_identity(*source.difference);
  return checksum_hex(std::as_bytes(std::span(text)));
}

OrderedJson errors_json(const std::map<std::string, RoundingError>& errors) {
  OrderedJson json = OrderedJson::object();
  for (const auto& [kind, e] : errors) {
    json[kind] = {e.tensors, e.elements, e.error_squares, e.weight_squares};
  }
  return json;
}

std::map<std::string, RoundingError> parse_errors(const Json& json) {
  std::map<std::string, RoundingError> errors;
  for (const auto& [kind, e] : json.items()) {
    errors[kind] = {e.at(0).get<int64_t>(), e.at(1).get<int64_t>(), e.at(2).get<double>(),
                    e.at(3).get<double>()};
  }
  return errors;
}

ConvertRecord parse_record(const Json& json) {
  ConvertRecord record;
  record.source = json.at("source").get<std::string>();
  record.options = json.at("options").get<std::string>();
  for (const auto& [name, file] : json.at("finished").items()) {
    record.finished[name] = {file.at("bytes").get<int64_t>(),
                             file.at("xxh3_128").get<std::string>(),
                             parse_errors(file.at("errors"))};
  }
  return record;
}

std::string options_text(const ConvertOptions& options) {
  constexpr const char* kFormats[] = {"keep", "bf16", "fp8", "int8", "int4"};
  std::string text = "ranks=" + std::to_string(options.model_parallel) +
                     " to=" + kFormats[static_cast<int>(options.to)] +
                     " shard_bytes=" + std::to_string(options.shard_bytes);
  if (options.to == NumberFormat::kFp8) {
    text += options.power_of_two_scales ? " scales=ue8m0" : " scales=float";
  }
  if (!options.difference_from.empty()) {
    text += " difference bits=" + std::to_string(options.difference_bits);
  }
  if (!options.add.empty()) text += " add";
  return text + (options.keep_unknown ? " keep_unknown" : "");
}

}  // namespace

ConvertRecord start_record(const ConvertSource& source, const ConvertOptions& options) {
  return {fingerprint(source), options_text(options), {}};
}

std::optional<ConvertRecord> load_record(const std::string& folder) {
  const std::string path = folder + "/" + std::string(kConvertRecordName);
  if (!fs::exists(path)) return std::nullopt;
  try {
    const Json json = parse_json(read_text_file(path, kMaxRecord), path);
    if (json.at("format") == kVersion) return parse_record(json);
  } catch (const nlohmann::json::exception&) {
    // Falls through: the message of the library says nothing to a user.
  }
  throw InputError(path + ": not a record of `tamis convert`");
}

void save_record(const std::string& folder, const ConvertRecord& record) {
  OrderedJson finished = OrderedJson::object();
  for (const auto& [name, file] : record.finished) {
    finished[name] = {
        {"bytes", file.bytes}, {"xxh3_128", file.checksum}, {"errors", errors_json(file.errors)}};
  }
  const OrderedJson json = {{"format", kVersion},
                            {"source", record.source},
                            {"options", record.options},
                            {"finished", finished}};
  write_file_atomically(folder + "/" + std::string(kConvertRecordName), json.dump(2) + "\n");
}

bool is_finished(const std::string& folder, const std::string& name, const ConvertRecord& record) {
  const auto it = record.finished.find(name);
  if (it == record.finished.end()) return false;
  const std::string path = folder + "/" + name;
  std::error_code error;
  if (fs::file_size(path, error) != static_cast<uintmax_t>(it->second.bytes) || error) return false;
  const MappedFile file(path);
  return checksum_hex({file.data(), static_cast<size_t>(file.size())}) == it->second.checksum;
}

}  // namespace tamis
