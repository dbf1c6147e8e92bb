#include "cli/support.h"

#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"

namespace tamis::cli {

std::string read_stdin() {
  std::string text;
  char buffer[1 << 16];
  size_t n;
  while ((n = std::fread(buffer, 1, sizeof buffer, stdin)) > 0) text.append(buffer, n);
  if (std::ferror(stdin) != 0) throw_errno("reading standard input");
  return text;
}

std::vector<int32_t> read_ids_file(const std::string& path) {
  constexpr int64_t kMaxBytes = int64_t{1} << 30;
  const std::string where = path == "-" ? "standard input" : path;
  const Json json = parse_json(path == "-" ? read_stdin() : read_text_file(path, kMaxBytes), where);
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

void write_stdout(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    throw_errno("writing standard output");
  }
}

}  // namespace tamis::cli
