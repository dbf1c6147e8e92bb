// A file mapped read-only into memory. Pages are read when they are touched, so a mapping of a
// 700 GB checkpoint costs nothing until its tensors are used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace tamis {

class MappedFile {
 public:
  MappedFile() = default;
  // Maps the whole file. InputError if it cannot be opened or is not a regular file.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::byte* data() const { return data_; }
  int64_t size() const { return size_; }
  const std::string& path() const { return path_; }

  // InputError if the file on disk is no longer as long as the mapping: touching the missing
  // pages would raise SIGBUS.
  void check_unchanged() const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  int64_t size_ = 0;
  int64_t mtime_ns_ = 0;
};

}  // namespace tamis
