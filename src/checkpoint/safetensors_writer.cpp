#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/safetensors.h"

namespace tamis {
namespace {

constexpr size_t kHeaderAlignment = 64;

// Bytes of a tensor to be written; the reader's overflow checks come later, on the text itself, so
// here a size that wraps only has to be refused.
int64_t spec_bytes(const TensorSpec& spec) {
  int64_t bits = dtype_bits(spec.dtype);
  for (int i = 0; i < spec.shape.rank(); ++i) {
    if (spec.shape[i] < 0 || __builtin_mul_overflow(bits, spec.shape[i], &bits)) {
      throw UsageError("tensor \"" + printable(spec.name) + "\": shape " + spec.shape.to_string() +
                       " cannot be written");
    }
  }
  if (bits % 8 != 0) {
    throw UsageError("tensor \"" + printable(spec.name) + "\": does not end on a byte");
  }
  return bits / 8;
}

int64_t total_bytes(std::span<const TensorSpec> specs) {
  int64_t total = 0;
  for (const TensorSpec& spec : specs) {
    if (__builtin_add_overflow(total, spec_bytes(spec), &total)) {
      throw UsageError("tensors of more than 2^63 bytes in one file");
    }
  }
  return total;
}

OrderedJson describe(const TensorSpec& spec, int64_t offset) {
  OrderedJson shape = OrderedJson::array();
  for (int i = 0; i < spec.shape.rank(); ++i) shape.push_back(spec.shape[i]);
  return {{"dtype", std::string(dtype_name(spec.dtype))},
          {"shape", std::move(shape)},
          {"data_offsets", {offset, offset + spec_bytes(spec)}}};
}

// Reads the header back through the reader's rules: what is written here can be read.
SafetensorsHeader checked_header(const std::string& text, int64_t data_bytes,
                                 const std::string& path) {
  try {
    return parse_safetensors_header(std::as_bytes(std::span(text)),
                                    static_cast<int64_t>(text.size()) + data_bytes, path);
  } catch (const InputError& e) {
    throw UsageError(std::string("cannot be written: ") + e.what());
  }
}

}  // namespace

std::string make_safetensors_header(std::span<const TensorSpec> specs,
                                    const std::map<std::string, std::string>& metadata) {
  // Written member by member: an ordered_json object of 50,000 keys looks each of them up linearly.
  std::string text = "{";
  const auto add = [&text](const std::string& key, const OrderedJson& value) {
    if (text.size() > 1) text += ',';
    try {
      text += OrderedJson(key).dump() + ":" + value.dump();
    } catch (const nlohmann::json::exception&) {
      throw UsageError("\"" + printable(key) + "\" cannot be written: not valid UTF-8");
    }
  };
  if (!metadata.empty()) add("__metadata__", metadata);
  int64_t offset = 0;
  for (const TensorSpec& spec : specs) {
    add(spec.name, describe(spec, offset));
    offset += spec_bytes(spec);
  }
  text += '}';
  while ((8 + text.size()) % kHeaderAlignment != 0) text += ' ';
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(text.size() >> (8 * i) & 0xFF);
  return length + text;
}

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::span<const TensorSpec> specs,
                                     const std::map<std::string, std::string>& metadata,
                                     AtomicFile::TemporaryName naming)
    : out_(path, naming) {
  const int64_t data_bytes = total_bytes(specs);
  const std::string text = make_safetensors_header(specs, metadata);
  header_ = checked_header(text, data_bytes, path);
  std::unordered_map<std::string_view, size_t> by_name;
  for (size_t i = 0; i < header_.tensors.size(); ++i) by_name.emplace(header_.tensors[i].name, i);
  for (const TensorSpec& spec : specs) order_.push_back(by_name.at(spec.name));
  out_.write(text);
}

int64_t SafetensorsWriter::data_bytes() const {
  return header_.tensors.empty() ? 0 : header_.tensors.back().offset + header_.tensors.back().bytes;
}

void SafetensorsWriter::append(std::span<const std::byte> bytes) {
  if (static_cast<int64_t>(bytes.size()) > data_bytes() - written_) {
    throw UsageError(out_.path() + ": more data than its header declares");
  }
  out_.write(bytes);
  written_ += static_cast<int64_t>(bytes.size());
}

void SafetensorsWriter::append_tensor(std::string_view name, std::span<const std::byte> bytes) {
  while (next_ < order_.size() && header_.tensors[order_[next_]].offset < written_) ++next_;
  const TensorInfo* next = next_ < order_.size() ? &header_.tensors[order_[next_]] : nullptr;
  if (next == nullptr || next->name != name || next->offset != written_ ||
      next->bytes != static_cast<int64_t>(bytes.size())) {
    throw UsageError(out_.path() + ": tensor \"" + printable(name) + "\" of " +
                     std::to_string(bytes.size()) + " bytes is not the next one declared");
  }
  ++next_;
  append(bytes);
}

void SafetensorsWriter::commit() {
  if (written_ != data_bytes()) {
    throw UsageError(out_.path() + ": " + std::to_string(data_bytes() - written_) +
                     " bytes of data were not written");
  }
  out_.commit();
}

}  // namespace tamis
