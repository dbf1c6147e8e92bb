// Preloaded into `tamis convert` by crash_states_test.py: records every change that the process
// makes under one folder, with its bytes, or makes one call fail.
//
//   TAMIS_IO_FOLDER  the folder; calls on other paths pass untouched and unrecorded
//   TAMIS_IO_LOG     FILE: one line a call; the bytes of the writes go to FILE.bytes
//   TAMIS_IO_FAIL    CALL:N:ERRNO: the N-th (from 1) CALL (write, fsync, rename, open) fails so;
//                    with ERRNO "short", a write stores half of its bytes and says so
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

namespace {

template <typename F>
F next(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

const auto real_write = next<ssize_t (*)(int, const void*, size_t)>("write");
const auto real_open = next<int (*)(const char*, int, ...)>("open");

std::string variable(const char* name) {
  const char* value = getenv(name);
  return value == nullptr ? "" : value;
}

struct Shim {
  std::string folder = variable("TAMIS_IO_FOLDER");
  int log = -1, bytes = -1;
  std::string fail_call;
  long fail_at = 0, calls = 0;
  std::string fail_with;
  std::map<int, std::string> paths;  // open files under the folder

  Shim() {
    const std::string file = variable("TAMIS_IO_LOG");
    if (!file.empty()) {
      log = real_open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
      bytes = real_open((file + ".bytes").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    }
    const std::string fail = variable("TAMIS_IO_FAIL");
    const size_t first = fail.find(':'), second = fail.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) return;
    fail_call = fail.substr(0, first);
    fail_at = strtol(fail.c_str() + first + 1, nullptr, 10);
    fail_with = fail.substr(second + 1);
  }

  bool watches(const char* path) const {
    const size_t n = folder.size();
    return n > 0 && strncmp(path, folder.c_str(), n) == 0 && (path[n] == '/' || path[n] == 0);
  }
  void line(const std::string& text) const {
    if (log >= 0 && real_write(log, (text + "\n").c_str(), text.size() + 1) < 0) _exit(99);
  }
  // Whether this call is the one to fail; errno is set then.
  bool fails(const char* call) {
    if (fail_call != call || ++calls != fail_at) return false;
    if (fail_with == "ENOSPC") errno = ENOSPC;
    if (fail_with == "EIO") errno = EIO;
    if (fail_with == "EINTR") errno = EINTR;
    if (fail_with == "ENOENT") errno = ENOENT;
    return true;
  }
};

Shim& shim() {
  static Shim instance;
  return instance;
}

int opened(const char* path, int flags, mode_t mode) {
  Shim& s = shim();
  if (!s.watches(path)) return real_open(path, flags, mode);
  const bool writes = (flags & O_ACCMODE) != O_RDONLY;
  if (writes && s.fails("open")) return -1;
  const int fd = real_open(path, flags, mode);
  if (fd < 0) return fd;
  s.paths[fd] = path;
  if (writes) s.line(std::string("open ") + path);
  return fd;
}

mode_t mode_of(int flags, va_list list) {
  return (flags & O_CREAT) != 0 ? va_arg(list, mode_t) : 0;
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = mode_of(flags, list);
  va_end(list);
  return opened(path, flags, mode);
}

int open64(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = mode_of(flags, list);
  va_end(list);
  return opened(path, flags, mode);
}

ssize_t write(int fd, const void* data, size_t size) {
  Shim& s = shim();
  const auto file = s.paths.find(fd);
  if (file == s.paths.end()) return real_write(fd, data, size);
  if (s.fails("write")) {
    if (s.fail_with != "short") return -1;
    size = (size + 1) / 2;
  }
  const ssize_t n = real_write(fd, data, size);
  if (n > 0 && s.bytes >= 0) {
    if (real_write(s.bytes, data, static_cast<size_t>(n)) != n) _exit(99);
    s.line("write " + std::to_string(n) + " " + file->second);
  }
  return n;
}

int ftruncate(int fd, off_t size) {
  Shim& s = shim();
  const auto file = s.paths.find(fd);
  const int result = next<int (*)(int, off_t)>("ftruncate")(fd, size);
  if (file != s.paths.end()) s.line("truncate " + std::to_string(size) + " " + file->second);
  return result;
}

int fsync(int fd) {
  Shim& s = shim();
  const auto file = s.paths.find(fd);
  if (file == s.paths.end()) return next<int (*)(int)>("fsync")(fd);
  if (s.fails("fsync")) return -1;
  s.line("fsync " + file->second);
  return next<int (*)(int)>("fsync")(fd);
}

int close(int fd) {
  shim().paths.erase(fd);
  return next<int (*)(int)>("close")(fd);
}

int rename(const char* from, const char* to) {
  Shim& s = shim();
  if (s.watches(to)) {
    if (s.fails("rename")) return -1;
    s.line(std::string("rename ") + from + "\t" + to);
  }
  return next<int (*)(const char*, const char*)>("rename")(from, to);
}

int unlink(const char* path) {
  Shim& s = shim();
  if (s.watches(path)) s.line(std::string("unlink ") + path);
  return next<int (*)(const char*)>("unlink")(path);
}

}  // extern "C"
