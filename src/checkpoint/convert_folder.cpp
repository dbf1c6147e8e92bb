#include "checkpoint/convert_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <optional>

#include "base/error.h"
#include "checkpoint/difference.h"
#include "checkpoint/manifest.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

// The name that a temporary file of AtomicFile stands for; empty if it is none.
std::string target_of_temporary(const std::string& name) {
  const size_t at = name.rfind(".tmp");
  if (at == std::string::npos) return "";
  const std::string rest = name.substr(at + 4);
  const bool digits =
      rest.size() > 1 && rest[0] == '-' &&
      std::all_of(rest.begin() + 1, rest.end(), [](char c) { return c >= '0' && c <= '9'; });
  return rest.empty() || digits ? name.substr(0, at) : "";
}

// What --force may remove: files that only a save of weights writes.
bool is_of_a_save(const std::string& name) {
  const bool weights = name.rfind("model", 0) == 0 && fs::path(name).extension() == ".safetensors";
  return weights || name == kDifferenceName || name == "model.safetensors.index.json" ||
         name == kConvertRecordName || name == kManifestName;
}

std::string megabytes(double bytes) {
  return std::to_string(static_cast<int64_t>(bytes / 1e6) + 1) + " MB";
}

}  // namespace

ConvertFolder::ConvertFolder(const std::string& path, const std::string& source) : path_(path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) throw DeviceError("creating the folder " + path + ": " + error.message());
  if (fs::equivalent(path, source, error)) {
    throw UsageError(path + ": the output folder is the input folder");
  }
  fd_ = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd_ < 0) throw_errno("opening the folder " + path);
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    const bool taken = errno == EWOULDBLOCK;
    const int saved = errno;
    ::close(fd_);
    if (taken) throw UsageError(path + ": another process is converting into this folder");
    errno = saved;
    throw_errno("locking the folder " + path);
  }
}

ConvertFolder::~ConvertFolder() { ::close(fd_); }

std::set<std::string> ConvertFolder::contents() const {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(path_)) {
    const std::string name = entry.path().filename().string();
    if (name != "lost+found") names.insert(name);
  }
  return names;
}

void ConvertFolder::remove(const std::string& name) const {
  std::error_code error;
  fs::remove(path_ + "/" + name, error);
  if (error) throw DeviceError("removing " + path_ + "/" + name + ": " + error.message());
}

ConvertRecord ConvertFolder::claim(const ConvertRecord& fresh, const std::set<std::string>& names,
                                   bool force) {
  if (force) {
    for (const std::string& name : contents()) {
      if (is_of_a_save(name) || is_of_a_save(target_of_temporary(name))) remove(name);
    }
  }
  for (const std::string& name : contents()) {
    const std::string target = target_of_temporary(name);
    if (names.count(target) != 0 || target == kConvertRecordName) remove(name);
  }
  const std::optional<ConvertRecord> found = load_record(path_);
  if (found && found->same_conversion(fresh)) return *found;
  const std::set<std::string> rest = contents();
  if (found) {
    throw InputError(path_ +
                     ": holds another conversion (other options, or a source that changed "
                     "since); pass --force to replace it");
  }
  if (!rest.empty() && !force) {
    throw InputError(path_ + ": holds \"" + printable(*rest.begin()) +
                     "\", which is not of this conversion; choose an empty folder or pass --force");
  }
  save_record(path_, fresh);
  return fresh;
}

void ConvertFolder::check_space(int64_t bytes) const {
  struct statvfs st {};
  if (::fstatvfs(fd_, &st) != 0) throw_errno("statvfs of " + path_);
  const double free = static_cast<double>(st.f_bavail) * static_cast<double>(st.f_frsize);
  if (free < static_cast<double>(bytes)) {
    throw DeviceError(path_ + ": " + megabytes(static_cast<double>(bytes)) + " are needed, " +
                      megabytes(free) + " are free");
  }
}

}  // namespace tamis
