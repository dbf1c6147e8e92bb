#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace tamis {
namespace {

class Descriptor {
 public:
  // O_NONBLOCK: opening a pipe must fail the check below, not wait for a writer.
  explicit Descriptor(const std::string& path)
      : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (fd_ < 0) throw InputError(path + ": " + std::strerror(errno));
  }
  ~Descriptor() { ::close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int64_t size() const {
    struct stat st {};
    if (::fstat(fd_, &st) != 0) throw_errno("fstat of " + path_);
    if (!S_ISREG(st.st_mode)) throw InputError(path_ + ": not a regular file");
    return st.st_size;
  }

  // Bytes [0, count) of the file; fewer if it ends before.
  std::vector<std::byte> read_start(int64_t count) const {
    std::vector<std::byte> bytes(static_cast<size_t>(count));
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t n =
          ::pread(fd_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(done));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) throw_errno("reading " + path_);
      if (n == 0) break;
      done += static_cast<size_t>(n);
    }
    bytes.resize(done);
    return bytes;
  }

 private:
  const std::string& path_;
  int fd_;
};

SafetensorsHeader read_header(const std::string& path, int64_t* file_size) {
  const Descriptor file(path);
  *file_size = file.size();
  const std::vector<std::byte> first = file.read_start(std::min<int64_t>(8, *file_size));
  const int64_t header_bytes = safetensors_header_size(first, *file_size, path);
  const std::vector<std::byte> prefix = file.read_start(header_bytes);
  if (static_cast<int64_t>(prefix.size()) != header_bytes) {
    throw InputError(path + ": the file shrank while it was read");
  }
  return parse_safetensors_header(prefix, *file_size, path);
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) {
  int64_t checked_size = 0;
  header_ = read_header(path, &checked_size);
  file_ = MappedFile(path);
  if (file_.size() != checked_size) {
    throw InputError(path + ": the file changed while it was opened");
  }
  by_name_.reserve(header_.tensors.size());
  for (size_t i = 0; i < header_.tensors.size(); ++i) by_name_.emplace(header_.tensors[i].name, i);
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &header_.tensors[it->second];
}

Tensor SafetensorsFile::tensor(const TensorInfo& info) const {
  const int64_t data_bytes = file_.size() - header_.header_bytes;
  if (info.offset < 0 || info.bytes < 0 || info.offset > data_bytes - info.bytes) {
    throw UsageError(path() + ": tensor \"" + printable(info.name) + "\" is not of this file");
  }
  return Tensor{file_.data() + header_.header_bytes + info.offset, info.dtype, info.shape};
}

}  // namespace tamis
