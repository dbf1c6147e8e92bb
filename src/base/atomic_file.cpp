#include "base/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/error.h"

namespace tamis {
namespace {

// Linux writes at most 2^31 - 4096 bytes a call; a round power of two below that.
constexpr size_t kMaxWrite = size_t{1} << 30;

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

void sync_folder(const std::string& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) throw_errno("opening the folder " + folder);
  const int result = ::fsync(fd);
  const int saved = errno;
  ::close(fd);
  // Some file systems have no fsync of folders and say EINVAL; there is nothing more to do there.
  if (result != 0 && saved != EINVAL) {
    errno = saved;
    throw_errno("fsync of the folder " + folder);
  }
}

}  // namespace

AtomicFile::AtomicFile(std::string path, TemporaryName naming) : path_(std::move(path)) {
  temporary_path_ = path_ + ".tmp";
  if (naming == TemporaryName::kPerProcess) temporary_path_ += "-" + std::to_string(::getpid());
  fd_ = ::open(temporary_path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd_ < 0) throw_errno("creating " + temporary_path_);
  // The lock comes before the truncation: a file that someone is still writing stays untouched.
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(std::exchange(fd_, -1));
    throw UsageError(temporary_path_ + ": another process is writing this file");
  }
  if (::ftruncate(fd_, 0) != 0) {
    const int saved = errno;
    discard();
    errno = saved;
    throw_errno("truncating " + temporary_path_);
  }
}

AtomicFile::~AtomicFile() { discard(); }

AtomicFile::AtomicFile(AtomicFile&& other) noexcept { *this = std::move(other); }

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(temporary_path_, other.temporary_path_);
  std::swap(fd_, other.fd_);
  std::swap(bytes_written_, other.bytes_written_);
  return *this;
}

void AtomicFile::discard() noexcept {
  if (fd_ < 0) return;
  ::unlink(temporary_path_.c_str());
  ::close(std::exchange(fd_, -1));
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  if (fd_ < 0) throw UsageError(path_ + ": written to after commit");
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), std::min(bytes.size(), kMaxWrite));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      throw_errno("writing " + temporary_path_ + " after " + std::to_string(bytes_written_) +
                  " bytes");
    }
    bytes_written_ += n;
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

void AtomicFile::commit() {
  if (fd_ < 0) throw UsageError(path_ + ": committed twice");
  if (::fsync(fd_) != 0) throw_errno("fsync of " + temporary_path_);
  if (::rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    throw_errno("renaming " + temporary_path_ + " to " + path_);
  }
  // close() is checked too: a network file system may report a failed write only here.
  if (::close(std::exchange(fd_, -1)) != 0) throw_errno("closing " + path_);
  sync_folder(folder_of(path_));
}

void write_file_atomically(const std::string& path, std::string_view contents) {
  AtomicFile out(path);
  out.write(contents);
  out.commit();
}

}  // namespace tamis
