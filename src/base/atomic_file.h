// A file that appears under its name only when it is whole.
//
// Bytes go to a temporary file in the same folder. commit() writes them through to the disk
// (fsync), renames over the final name and syncs the folder, so that after a kill, a full disk or a
// power loss the final name holds either what stood there before or everything that was written.
//   AtomicFile out("dir/model.safetensors");
//   out.write(bytes);
//   out.commit();
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace tamis {

class AtomicFile {
 public:
  enum class TemporaryName {
    kPerProcess,  // PATH.tmp-PID: two processes never meet
    // PATH.tmp: a run that was killed leaves one file that the next run overwrites. A second
    // process that writes the same file at the same time gets a UsageError.
    kFixed,
  };

  // Creates the temporary file, empty. DeviceError if that fails.
  explicit AtomicFile(std::string path, TemporaryName naming = TemporaryName::kPerProcess);
  // Removes the temporary file unless it was committed.
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;

  // Appends. DeviceError naming the file and the reason (disk full, quota, I/O error).
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }

  // fsync, rename, fsync of the folder. Nothing may be written afterwards.
  void commit();

  const std::string& path() const { return path_; }
  const std::string& temporary_path() const { return temporary_path_; }
  int64_t bytes_written() const { return bytes_written_; }

 private:
  void discard() noexcept;

  std::string path_;
  std::string temporary_path_;
  int fd_ = -1;
  int64_t bytes_written_ = 0;
};

// The whole of a small file in one call.
void write_file_atomically(const std::string& path, std::string_view contents);

}  // namespace tamis
