// Files that have broken readers of safetensors elsewhere, each with what our message must say.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tamis {

struct HostileFile {
  std::string name;     // "ld4_shape_wraps_64_bits"
  std::string bytes;    // the whole file
  std::string message;  // a part of the InputError that no other rule's message holds
};

// 8 bytes of length, the JSON, then `data` zero bytes.
std::string safetensors_file(std::string_view json, size_t data);

std::vector<HostileFile> hostile_files();

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

}  // namespace tamis
