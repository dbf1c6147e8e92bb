#include "train/event_file.h"

#include <array>
#include <bit>
#include <filesystem>

#include "base/error.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "events.out.tfevents.";

constexpr std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78U : 0);
    table[i] = crc;
  }
  return table;
}

uint32_t masked(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return std::rotr(crc, 15) + 0xA282EAD8U;
}

template <typename T>
std::string little_endian(T value) {
  std::string out;
  for (size_t i = 0; i < sizeof(T); ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
  return out;
}

std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  return out + static_cast<char>(value);
}

// Protocol buffers: a key is the field's number and how its value is written.
std::string key(uint64_t field, uint64_t wire) { return varint(field << 3 | wire); }
std::string of_fixed64(uint64_t field, double value) {
  return key(field, 1) + little_endian(std::bit_cast<uint64_t>(value));
}
std::string of_float(uint64_t field, double value) {
  return key(field, 5) + little_endian(std::bit_cast<uint32_t>(static_cast<float>(value)));
}
std::string of_bytes(uint64_t field, const std::string& value) {
  return key(field, 2) + varint(value.size()) + value;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> kTable = crc_table();
  uint32_t crc = 0xFFFFFFFFU;
  for (const char c : bytes) {
    crc = (crc >> 8) ^ kTable[(crc ^ static_cast<uint8_t>(c)) & 0xFF];
  }
  return ~crc;
}

EventFile::EventFile(const std::string& folder, double wall_time) {
  fs::create_directories(folder);
  for (const fs::directory_entry& e : fs::directory_iterator(folder)) {
    if (e.path().filename().string().starts_with(kPrefix)) fs::remove(e.path());
  }
  path_ = folder + "/" + std::string(kPrefix) + std::to_string(static_cast<int64_t>(wall_time)) +
          ".tamis";
  out_.open(path_, std::ios::binary | std::ios::trunc);
  if (!out_) throw_errno(path_);
  record(of_fixed64(1, wall_time) + of_bytes(3, "brain.Event:2"));
}

void EventFile::add(double wall_time, int64_t step,
                    const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    summary += of_bytes(1, of_bytes(1, tag) + of_float(2, value));
  }
  record(of_fixed64(1, wall_time) + key(2, 0) + varint(static_cast<uint64_t>(step)) +
         of_bytes(5, summary));
}

void EventFile::record(const std::string& event) {
  const std::string length = little_endian(static_cast<uint64_t>(event.size()));
  out_ << length << little_endian(masked(length)) << event << little_endian(masked(event))
       << std::flush;
  if (!out_) throw_errno(path_);
}

}  // namespace tamis
