// Files of tensors in the safetensors format, read through a mapping and written as a stream.
//
// A file is: 8 bytes, little-endian, the length N of the header; N bytes of JSON; the data. The
// header maps each name to {"dtype", "shape", "data_offsets": [begin, end]}, offsets counted from
// the start of the data. A header from outside is believed only after every rule in
// docs/formats/checkpoint.md holds, and no byte of data is touched before that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/atomic_file.h"
#include "base/mapped_file.h"
#include "tensor/dtype.h"
#include "tensor/tensor.h"

namespace tamis {

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  int64_t offset = 0;  // from the start of the data part
  int64_t bytes = 0;   // what dtype and shape need; equal to end - begin of the file
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;              // by offset: together they cover the data exactly
  std::map<std::string, std::string> metadata;  // "__metadata__"
  int64_t header_bytes = 0;                     // where the data starts: 8 + N
};

// A header may not be longer than this (the limit of the reference reader).
inline constexpr int64_t kMaxSafetensorsHeader = 100'000'000;

// The size of the part before the data (8 + N) from the first 8 bytes of a file of file_size bytes.
// InputError "WHERE: ..." if the file is shorter than that or N is over the limit.
int64_t safetensors_header_size(std::span<const std::byte> first8, int64_t file_size,
                                const std::string& where);

// Parses and checks a header. `prefix` holds at least the first 8 + N bytes of a file of file_size
// bytes, or the whole file if it is shorter than 8. InputError "WHERE: ..." with a message of its
// own for each rule. Takes time O(n log n) and at most 20 times the header's size in memory.
SafetensorsHeader parse_safetensors_header(std::span<const std::byte> prefix, int64_t file_size,
                                           const std::string& where);

class SafetensorsFile {
 public:
  // Reads and checks the header, then maps the file. InputError if it is no regular file or breaks
  // a rule.
  explicit SafetensorsFile(const std::string& path);

  const SafetensorsHeader& header() const { return header_; }
  const std::string& path() const { return file_.path(); }

  // The tensor of that name, null if there is none. Valid as long as this object.
  const TensorInfo* find(std::string_view name) const;

  // A view of a tensor of this file; valid as long as this object. Its data has no alignment beyond
  // what the file gives it.
  Tensor tensor(const TensorInfo& info) const;

  const MappedFile& file() const { return file_; }

 private:
  SafetensorsHeader header_;
  MappedFile file_;
  std::unordered_map<std::string_view, size_t> by_name_;  // views into header_.tensors
};

// What a writer needs to know of a tensor before the first byte of data.
struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
};

// Writes a file tensor by tensor with memory for the header only. Tensors lie in the file in the
// order of `specs`, without gaps: put wide types first to keep every tensor aligned to its type.
class SafetensorsWriter {
 public:
  // Writes the header. UsageError if the specs are not a valid header (a name twice, a size past
  // 2^63); DeviceError if the file cannot be created.
  SafetensorsWriter(const std::string& path, std::span<const TensorSpec> specs,
                    const std::map<std::string, std::string>& metadata = {},
                    AtomicFile::TemporaryName naming = AtomicFile::TemporaryName::kPerProcess);

  // The next bytes of the data, in pieces of any size. UsageError if there are more than declared.
  void append(std::span<const std::byte> bytes);

  // All bytes of the next tensor, which must have this name and length.
  void append_tensor(std::string_view name, std::span<const std::byte> bytes);

  // Puts the file under its final name. UsageError if bytes are missing.
  void commit();

  const SafetensorsHeader& header() const { return header_; }
  int64_t data_bytes() const;  // of the whole file when it is done

 private:
  SafetensorsHeader header_;
  std::vector<size_t> order_;  // of the specs, as indices into header_.tensors
  AtomicFile out_;
  size_t next_ = 0;      // of order_, what append_tensor expects
  int64_t written_ = 0;  // bytes of data
};

// The bytes of 8 + N with which a file of these tensors starts, padded with spaces to a multiple of
// 64 so that the data starts on a cache line.
std::string make_safetensors_header(std::span<const TensorSpec> specs,
                                    const std::map<std::string, std::string>& metadata);

}  // namespace tamis
