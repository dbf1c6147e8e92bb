// The two directions of a vocabulary, and the byte-level alphabet its keys are written in.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tamis {

// GPT-2's alphabet: a printable character stands for every byte (' ' is U+0120, '\n' is U+010A).
class ByteAlphabet {
 public:
  ByteAlphabet();

  char32_t character(uint8_t byte) const { return characters_[byte]; }

  // Appends the bytes that the characters of `key` stand for. False, with nothing appended, if a
  // character stands for no byte. key must be valid UTF-8.
  bool append_bytes(std::string_view key, std::string& out) const;

 private:
  static constexpr char32_t kLimit = 0x144;  // the alphabet ends at U+0143

  std::array<char32_t, 256> characters_;
  std::array<int16_t, kLimit> bytes_;  // -1: not in the alphabet
};

// Keys (as the file writes them) to ids. Keys are kept in one string: no allocation a token.
class KeyTable {
 public:
  struct Entry {
    uint32_t begin, size;
    int32_t id;
  };

  // False, with nothing added, if the key is there already. The total of all keys stays below
  // 4 GiB (a tokenizer.json is limited to less).
  bool add(std::string_view key, int32_t id);
  std::optional<int32_t> find(std::string_view key) const;

  const std::vector<Entry>& entries() const { return entries_; }
  std::string_view key(const Entry& e) const {
    return std::string_view(text_).substr(e.begin, e.size);
  }

 private:
  size_t slot_of(std::string_view key) const;
  void grow();

  std::string text_;
  std::vector<Entry> entries_;
  std::vector<uint32_t> slots_;  // entry + 1, 0 = free; a power of two long, at most half full
};

}  // namespace tamis
