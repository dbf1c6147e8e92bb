// XXH3 with 128 bits, for finding damage; it is no protection against an attacker.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace tamis {

class Checksum {
 public:
  Checksum();
  ~Checksum();
  Checksum(const Checksum&) = delete;
  Checksum& operator=(const Checksum&) = delete;

  void update(std::span<const std::byte> bytes);
  // 32 hexadecimal digits, as `xxh128sum` prints, of everything since construction.
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string checksum_hex(std::span<const std::byte> bytes);

}  // namespace tamis
