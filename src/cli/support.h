// What several subcommands share: printing results and progress.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace tamis::cli {

// Reads all of stdin; DeviceError if reading fails. UsageError in a rank that mpirun gives no
// stdin.
std::string read_stdin();

// A JSON array of token ids; InputError naming the file and the entry. "-" is stdin.
std::vector<int32_t> read_ids_file(const std::string& path);

// The same from a text; `where` starts every message.
std::vector<int32_t> parse_ids(std::string_view json, const std::string& where = "token ids");

// The folder's tokenizer.json, if it has one.
std::optional<Tokenizer> load_tokenizer(const std::string& folder);

// A line on stderr that shows how far a long job is, from its second second on: in place on a
// terminal, a new line every few seconds elsewhere. Of several ranks only rank 0 shows it.
class Progress {
 public:
  Progress(std::string what, int64_t total, bool enabled);
  void add(int64_t done);
  // Clears the line. Called again it does nothing.
  void finish();

 private:
  std::string what_;
  int64_t total_, done_ = 0;
  bool enabled_, terminal_, shown_ = false;
  std::chrono::steady_clock::time_point start_, last_;
};

// Writes to stdout and flushes; DeviceError if the pipe is gone or the disk is full.
void write_stdout(std::string_view text);

}  // namespace tamis::cli
