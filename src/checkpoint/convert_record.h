// OUT/tamis-convert.json: what a conversion has finished. It is written before the first file and
// after each one, so that a run that was killed can go on, and it stays: where the weights came
// from is worth knowing.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "checkpoint/convert_plan.h"

namespace tamis {

inline constexpr std::string_view kConvertRecordName = "tamis-convert.json";

struct ConvertRecord {
  struct File {
    int64_t bytes = 0;
    std::string checksum;  // of the whole file, as in checksum.h
    std::map<std::string, RoundingError> errors;
  };
  std::string source;   // fingerprint of names, sizes, times and headers of the source files
  std::string options;  // those that decide what is written
  std::map<std::string, File> finished;

  // Whether files of `other` are files of this conversion.
  bool same_conversion(const ConvertRecord& other) const {
    return source == other.source && options == other.options;
  }
};

// A record with nothing finished.
ConvertRecord start_record(const ConvertSource& source, const ConvertOptions& options);

// Null if the folder has none. InputError if it is damaged.
std::optional<ConvertRecord> load_record(const std::string& folder);
void save_record(const std::string& folder, const ConvertRecord& record);

// Whether the file stands in the folder with the recorded length and checksum. Reads all of it.
bool is_finished(const std::string& folder, const std::string& name, const ConvertRecord& record);

}  // namespace tamis
