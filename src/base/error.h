// The three errors of Tamis. Libraries throw them and never exit; main() turns them into exit
// codes (1, 2, 3) and a server into the answer of one request.
#pragma once

#include <stdexcept>
#include <string>

namespace tamis {

// What came from outside is wrong: a file, a request, a prompt. The message names what and where:
//   "model.safetensors: tensor 'w': 4 bytes of data, shape [2,3] of F32 needs 24"
class InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The caller asked for something that does not exist: a flag, a combination, an API misuse.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The machine failed: out of memory, a device call, a disk. The message names the failing call.
class DeviceError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws DeviceError("WHAT: strerror(errno)").
[[noreturn]] void throw_errno(const std::string& what);

// Text from outside, made safe to print in a message: control characters and bytes that are not
// UTF-8 are escaped as \xNN, and anything past max_bytes is cut and marked.
std::string printable(std::string_view text, size_t max_bytes = 120);

}  // namespace tamis
