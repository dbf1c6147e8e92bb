#include "cli/support.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "comm/launcher.h"

namespace tamis::cli {

std::string read_stdin() {
  if (launcher_rank() > 0) {
    throw UsageError("standard input reaches rank 0 only: name a file instead of -");
  }
  std::string text;
  char buffer[1 << 16];
  size_t n;
  while ((n = std::fread(buffer, 1, sizeof buffer, stdin)) > 0) text.append(buffer, n);
  if (std::ferror(stdin) != 0) throw_errno("reading standard input");
  return text;
}

std::vector<int32_t> parse_ids(std::string_view text, const std::string& where) {
  const Json json = parse_json(text, where);
  if (!json.is_array()) throw InputError(where + ": want a JSON array of token ids");
  std::vector<int32_t> ids;
  for (const Json& v : json) {
    const bool fits = v.is_number_integer() && v >= 0 && v <= std::numeric_limits<int32_t>::max();
    if (!fits) {
      throw InputError(where + ": entry " + std::to_string(ids.size()) + ": want a token id, got " +
                       printable(v.dump(), 40));
    }
    ids.push_back(v.get<int32_t>());
  }
  return ids;
}

std::vector<int32_t> read_ids_file(const std::string& path) {
  constexpr int64_t kMaxBytes = int64_t{1} << 30;
  return path == "-" ? parse_ids(read_stdin(), "standard input")
                     : parse_ids(read_text_file(path, kMaxBytes), path);
}

std::optional<Tokenizer> load_tokenizer(const std::string& folder) {
  const std::string path = folder + "/tokenizer.json";
  if (!std::filesystem::exists(path)) return std::nullopt;
  return Tokenizer::load(path);
}

Progress::Progress(std::string what, int64_t total, bool enabled)
    : what_(std::move(what)),
      total_(total),
      enabled_(enabled && launcher_rank() == 0),
      terminal_(::isatty(STDERR_FILENO) == 1),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {}

void Progress::add(int64_t done) {
  using std::chrono::duration;
  done_ = std::min(total_, done_ + done);
  const auto now = std::chrono::steady_clock::now();
  const double elapsed = duration<double>(now - start_).count();
  const double pause = terminal_ ? 0.2 : 5.0;
  if (!enabled_ || elapsed < 2 || (shown_ && duration<double>(now - last_).count() < pause)) return;
  last_ = now;
  shown_ = true;
  const double left =
      done_ > 0 ? elapsed * static_cast<double>(total_ - done_) / static_cast<double>(done_) : 0;
  std::fprintf(stderr, "%s%s: %lld of %lld, %.0f s left%s", terminal_ ? "\r\033[K" : "",
               what_.c_str(), static_cast<long long>(done_), static_cast<long long>(total_), left,
               terminal_ ? "" : "\n");
}

void Progress::finish() {
  if (shown_ && terminal_) std::fputs("\r\033[K", stderr);
  shown_ = false;
  enabled_ = false;
}

void write_stdout(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw_errno("writing standard output");
  }
}

}  // namespace tamis::cli
