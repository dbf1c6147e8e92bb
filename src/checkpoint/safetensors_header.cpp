// The header of a safetensors file: a parser of exactly the JSON that the format allows. It never
// recurses, keeps no tree, and takes memory only for the tensors it returns.
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"
#include "checkpoint/safetensors.h"

namespace tamis {
namespace {

constexpr size_t kMaxName = 1024;
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

std::string quote(std::string_view text) { return "\"" + printable(text) + "\""; }

// Characters that make a name print as something else than it is.
bool is_deceptive(char32_t c) {
  return c < 0x20 || (c >= 0x7F && c < 0xA0) || c == 0x200E || c == 0x200F ||
         (c >= 0x2028 && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069) || c == 0xFEFF;
}

bool is_path_like(std::string_view name) {
  if (name.front() == '/' || name.find('\\') != std::string_view::npos) return true;
  while (!name.empty()) {
    const size_t slash = std::min(name.find('/'), name.size());
    if (name.substr(0, slash) == ".." || name.substr(0, slash) == ".") return true;
    name.remove_prefix(std::min(slash + 1, name.size()));
  }
  return false;
}

class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  SafetensorsHeader parse() {
    if (text_.empty() || text_[0] != '{') {
      fail("the header must begin with '{'");
    }
    const size_t invalid = utf8_first_invalid(text_);
    if (invalid != std::string_view::npos) {
      at_ = invalid;
      fail("the header is not valid UTF-8");
    }
    ++at_;
    for (bool first = true; more_members(first, '}'); first = false) read_member();
    skip_space();
    if (at_ != text_.size()) fail("text after the header's closing '}'");
    return std::move(header_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw InputError(where_ + ": " + what + " (byte " + std::to_string(8 + at_) + ")");
  }
  [[noreturn]] void fail_tensor(const std::string& name, const std::string& what) const {
    fail("tensor " + quote(name) + ": " + what);
  }

  void skip_space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
      ++at_;
    }
  }

  char peek() {
    skip_space();
    if (at_ == text_.size()) fail("the header ends in the middle");
    return text_[at_];
  }

  void expect(char c, const char* what) {
    if (peek() != c) fail(std::string("expected '") + c + "' " + what);
    ++at_;
  }

  // Steps to the next member of an object or array that `close` ends; false past the last.
  bool more_members(bool first, char close) {
    if (peek() == close) {
      ++at_;
      return false;
    }
    if (!first) {
      expect(',', "between members");
      if (peek() == close) fail("a comma before the closing bracket");
    }
    return true;
  }

  uint32_t read_hex4() {
    if (text_.size() - at_ < 4) fail("the header ends in the middle");
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = text_[at_++];
      const bool digit = c >= '0' && c <= '9';
      const bool letter = (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
      if (!digit && !letter) fail("\\u without four hexadecimal digits");
      value = value * 16 + static_cast<uint32_t>(digit ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return value;
  }

  void read_unicode_escape(std::string& out) {
    uint32_t c = read_hex4();
    if (c >= 0xD800 && c < 0xDC00 && text_.substr(at_, 2) == "\\u") {
      at_ += 2;
      const uint32_t low = read_hex4();
      if (low < 0xDC00 || low > 0xDFFF) fail("half a surrogate pair in a string");
      c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    }
    if (c >= 0xD800 && c < 0xE000) fail("half a surrogate pair in a string");
    utf8_append(out, c);
  }

  void read_escape(std::string& out) {
    if (at_ == text_.size()) fail("the header ends in the middle");
    constexpr std::string_view kEscapes = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    const char c = text_[at_++];
    const size_t i = kEscapes.find(c);
    if (c == 'u') {
      read_unicode_escape(out);
    } else if (i != std::string_view::npos) {
      out += kMeanings[i];
    } else {
      fail("an unknown escape in a string");
    }
  }

  std::string read_string(const std::string& what) {
    if (peek() != '"') fail(what + " is not a string");
    ++at_;
    std::string out;
    while (true) {
      if (at_ == text_.size()) fail("the header ends in the middle");
      const char c = text_[at_++];
      if (c == '"') break;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
      if (c == '\\') {
        read_escape(out);
      } else {
        out += c;
      }
    }
    return out;
  }

  // A JSON number that is a whole number from 0 to 2^63 - 1, written as digits alone.
  int64_t read_count(const std::string& name, const char* what) {
    const char c = peek();
    if (c == '-') fail_tensor(name, std::string(what) + " is negative");
    if (c < '0' || c > '9') fail_tensor(name, std::string(what) + " is not a number");
    const size_t start = at_;
    int64_t value = 0;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      const int digit = text_[at_++] - '0';
      if (value > (kMaxInt64 - digit) / 10) {
        fail_tensor(name, std::string(what) + " does not fit in 63 bits");
      }
      value = value * 10 + digit;
    }
    if (text_[start] == '0' && at_ - start > 1) {
      fail_tensor(name, std::string(what) + " has a leading zero");
    }
    if (at_ < text_.size() && (text_[at_] == '.' || (text_[at_] | 0x20) == 'e')) {
      fail_tensor(name, std::string(what) + " is not written as a whole number");
    }
    return value;
  }

  void read_metadata() {
    if (has_metadata_) fail("\"__metadata__\" appears twice");
    has_metadata_ = true;
    if (peek() != '{') fail("\"__metadata__\" is not an object");
    ++at_;
    for (bool first = true; more_members(first, '}'); first = false) {
      std::string key = read_string("a key of \"__metadata__\"");
      expect(':', "after a key");
      std::string value = read_string("\"__metadata__\" entry " + quote(key));
      if (header_.metadata.count(key) != 0) {
        fail("\"__metadata__\" entry " + quote(key) + " appears twice");
      }
      header_.metadata.emplace(std::move(key), std::move(value));
    }
  }

  void check_name(const std::string& name) const {
    if (name.empty()) fail("a tensor without a name");
    if (name.size() > kMaxName) {
      fail("a tensor name of " + std::to_string(name.size()) + " bytes, the limit is " +
           std::to_string(kMaxName));
    }
    for (std::string_view rest = name; !rest.empty();) {
      const size_t n = utf8_sequence_length(rest);
      if (is_deceptive(utf8_decode(rest, n))) {
        fail_tensor(name, "the name holds a control or text direction character");
      }
      rest.remove_prefix(n);
    }
    if (is_path_like(name)) fail_tensor(name, "the name looks like a path");
  }

  void read_dtype(TensorInfo& info) {
    const std::string dtype = read_string("the dtype of tensor " + quote(info.name));
    if (!dtype_from_name(dtype, &info.dtype)) {
      fail_tensor(info.name, "unknown dtype " + quote(dtype));
    }
  }

  void read_shape(TensorInfo& info) {
    if (peek() != '[') fail_tensor(info.name, "the shape is not an array");
    ++at_;
    std::array<int64_t, Shape::kMaxRank> dims{};
    size_t rank = 0;
    for (bool first = true; more_members(first, ']'); first = false) {
      const int64_t size = read_count(info.name, "a size in the shape");
      if (rank == dims.size()) fail_tensor(info.name, "more than 4 dimensions");
      dims[rank++] = size;
    }
    info.shape = Shape(std::span<const int64_t>(dims.data(), rank));
  }

  void read_offsets(TensorInfo& info) {
    if (peek() != '[') fail_tensor(info.name, "data_offsets is not an array");
    ++at_;
    std::array<int64_t, 2> offsets{};
    size_t count = 0;
    for (bool first = true; more_members(first, ']'); first = false) {
      if (count == 2) fail_tensor(info.name, "data_offsets has more than two entries");
      offsets[count++] = read_count(info.name, "an offset");
    }
    if (count != 2) fail_tensor(info.name, "data_offsets has less than two entries");
    if (offsets[0] > offsets[1]) fail_tensor(info.name, "data_offsets run backwards");
    info.offset = offsets[0];
    info.bytes = offsets[1] - offsets[0];
  }

  // The bytes that dtype and shape need, each step checked.
  int64_t needed_bytes(const TensorInfo& info) const {
    int64_t elements = 1, bits = 0;
    for (int i = 0; i < info.shape.rank(); ++i) {
      if (__builtin_mul_overflow(elements, info.shape[i], &elements)) {
        fail_tensor(info.name, "the shape " + info.shape.to_string() +
                                   " has more elements than 63 bits can count");
      }
    }
    if (__builtin_mul_overflow(elements, dtype_bits(info.dtype), &bits) || bits > kMaxInt64 - 7) {
      fail_tensor(info.name, "the shape " + info.shape.to_string() +
                                 " needs more bits than 63 bits can count");
    }
    const int64_t row = info.shape.rank() == 0 ? 1 : info.shape[info.shape.rank() - 1];
    if (dtype_bits(info.dtype) < 8 && row % 2 != 0) {
      fail_tensor(info.name, "rows of 4-bit values that do not end on a byte");
    }
    return bits / 8;
  }

  void read_member() {
    std::string name = read_string("the name of a tensor");
    expect(':', "after a name");
    if (name == "__metadata__") return read_metadata();
    check_name(name);
    TensorInfo info;
    info.name = std::move(name);
    if (peek() != '{') fail_tensor(info.name, "its entry is not an object");
    ++at_;
    bool seen[3] = {};
    for (bool first = true; more_members(first, '}'); first = false) read_field(info, seen);
    constexpr const char* kNames[3] = {"dtype", "shape", "data_offsets"};
    for (int i = 0; i < 3; ++i) {
      if (!seen[i]) fail_tensor(info.name, std::string("no ") + kNames[i]);
    }
    const int64_t needed = needed_bytes(info);
    if (needed != info.bytes) {
      fail_tensor(info.name, std::to_string(info.bytes) + " bytes of data, shape " +
                                 info.shape.to_string() + " of " +
                                 std::string(dtype_name(info.dtype)) + " needs " +
                                 std::to_string(needed));
    }
    header_.tensors.push_back(std::move(info));
  }

  void read_field(TensorInfo& info, bool (&seen)[3]) {
    const std::string key = read_string("a key of tensor " + quote(info.name));
    const int field = key == "dtype" ? 0 : key == "shape" ? 1 : key == "data_offsets" ? 2 : -1;
    if (field < 0) fail_tensor(info.name, "unknown key " + quote(key));
    if (std::exchange(seen[field], true)) fail_tensor(info.name, quote(key) + " appears twice");
    expect(':', "after a key");
    if (field == 0) return read_dtype(info);
    if (field == 1) return read_shape(info);
    read_offsets(info);
  }

  std::string_view text_;
  const std::string& where_;
  size_t at_ = 0;
  bool has_metadata_ = false;
  SafetensorsHeader header_;
};

void reject_duplicates(const std::vector<TensorInfo>& tensors, const std::string& where) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const TensorInfo& t : tensors) names.push_back(t.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) {
    throw InputError(where + ": tensor " + quote(*twice) + " appears twice");
  }
}

// Tensors sorted by offset must cover [0, data_bytes) exactly.
void check_cover(const std::vector<TensorInfo>& tensors, int64_t data_bytes,
                 const std::string& where) {
  const TensorInfo* last = nullptr;  // the one that reaches furthest
  for (const TensorInfo& t : tensors) {
    if (last == nullptr || t.offset + t.bytes > last->offset + last->bytes) last = &t;
  }
  const int64_t end = last == nullptr ? 0 : last->offset + last->bytes;
  if (end > data_bytes) {
    throw InputError(where + ": the file is too short: " + std::to_string(end - data_bytes) +
                     " bytes are missing (tensor " + quote(last->name) + " ends at byte " +
                     std::to_string(end) + " of the data, the file holds " +
                     std::to_string(data_bytes) + ")");
  }
  int64_t covered = 0;
  for (const TensorInfo& t : tensors) {
    if (t.offset < covered) {
      throw InputError(where + ": tensor " + quote(t.name) + " overlaps the one before it");
    }
    if (t.offset > covered) {
      throw InputError(where + ": " + std::to_string(t.offset - covered) + " bytes before tensor " +
                       quote(t.name) + " belong to no tensor");
    }
    covered = t.offset + t.bytes;
  }
  if (covered != data_bytes) {
    throw InputError(where + ": " + std::to_string(data_bytes - covered) +
                     " bytes after the last tensor belong to no tensor");
  }
}

}  // namespace

int64_t safetensors_header_size(std::span<const std::byte> first8, int64_t file_size,
                                const std::string& where) {
  if (file_size < 8 || first8.size() < 8) {
    throw InputError(where + ": " + std::to_string(file_size) +
                     " bytes, a safetensors file has at least 8");
  }
  uint64_t n = 0;
  for (size_t i = 0; i < 8; ++i) n |= static_cast<uint64_t>(first8[i]) << (8 * i);
  if (n > static_cast<uint64_t>(kMaxSafetensorsHeader)) {
    throw InputError(where + ": a header of " + std::to_string(n) + " bytes, the limit is " +
                     std::to_string(kMaxSafetensorsHeader));
  }
  if (n > static_cast<uint64_t>(file_size - 8)) {
    throw InputError(where + ": a header of " + std::to_string(n) + " bytes in a file of " +
                     std::to_string(file_size));
  }
  return 8 + static_cast<int64_t>(n);
}

SafetensorsHeader parse_safetensors_header(std::span<const std::byte> prefix, int64_t file_size,
                                           const std::string& where) {
  const int64_t header_bytes = safetensors_header_size(prefix, file_size, where);
  if (prefix.size() < static_cast<size_t>(header_bytes)) {
    throw UsageError(where + ": parse_safetensors_header needs the whole header");
  }
  const std::string_view text(reinterpret_cast<const char*>(prefix.data()) + 8,
                              static_cast<size_t>(header_bytes - 8));
  SafetensorsHeader header = HeaderParser(text, where).parse();
  header.header_bytes = header_bytes;
  reject_duplicates(header.tensors, where);
  // Empty tensors share their offset with a neighbour: they come first, then by name.
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) {
              if (a.offset != b.offset) return a.offset < b.offset;
              return a.bytes != b.bytes ? a.bytes < b.bytes : a.name < b.name;
            });
  check_cover(header.tensors, file_size - header_bytes, where);
  return header;
}

}  // namespace tamis
