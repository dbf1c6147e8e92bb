#include "text/tokenizer_vocab.h"

#include <algorithm>
#include <functional>

#include "base/utf8.h"

namespace tamis {

ByteAlphabet::ByteAlphabet() {
  bytes_.fill(-1);
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable_latin =
        (byte > 32 && byte < 127) || (byte > 160 && byte < 256 && byte != 173);
    const char32_t c = printable_latin ? static_cast<char32_t>(byte) : next++;
    characters_[static_cast<size_t>(byte)] = c;
    bytes_[c] = static_cast<int16_t>(byte);
  }
}

bool ByteAlphabet::append_bytes(std::string_view key, std::string& out) const {
  const size_t before = out.size();
  for (size_t i = 0; i < key.size();) {
    const size_t length = utf8_sequence_length(key.substr(i));
    const char32_t c = length == 0 ? kLimit : utf8_decode(key.substr(i), length);
    if (c >= kLimit || bytes_[c] < 0) {
      out.resize(before);
      return false;
    }
    out += static_cast<char>(bytes_[c]);
    i += length;
  }
  return true;
}

size_t KeyTable::slot_of(std::string_view wanted) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = std::hash<std::string_view>()(wanted) & mask;
  while (slots_[slot] != 0 && key(entries_[slots_[slot] - 1]) != wanted) slot = (slot + 1) & mask;
  return slot;
}

bool KeyTable::add(std::string_view key, int32_t id) {
  if (2 * (entries_.size() + 1) > slots_.size()) grow();
  const size_t slot = slot_of(key);
  if (slots_[slot] != 0) return false;
  entries_.push_back({static_cast<uint32_t>(text_.size()), static_cast<uint32_t>(key.size()), id});
  text_ += key;
  slots_[slot] = static_cast<uint32_t>(entries_.size());
  return true;
}

std::optional<int32_t> KeyTable::find(std::string_view key) const {
  if (slots_.empty()) return std::nullopt;
  const uint32_t entry = slots_[slot_of(key)];
  if (entry == 0) return std::nullopt;
  return entries_[entry - 1].id;
}

void KeyTable::grow() {
  slots_.assign(std::max<size_t>(64, 2 * slots_.size()), 0);
  for (size_t i = 0; i < entries_.size(); ++i) {
    slots_[slot_of(key(entries_[i]))] = static_cast<uint32_t>(i + 1);
  }
}

}  // namespace tamis
