#include "cli/line_reader.h"

#include <poll.h>
#include <pthread.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "base/error.h"

namespace tamis::cli {
namespace {

constexpr size_t kMaxLineBytes = size_t{16} << 20;

sigset_t interrupt_set() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

Interrupts::Interrupts() {
  const sigset_t set = interrupt_set();
  const int error = pthread_sigmask(SIG_BLOCK, &set, nullptr);
  if (error != 0) {
    errno = error;
    throw_errno("pthread_sigmask");
  }
  fd_ = ::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
  if (fd_ < 0) throw_errno("signalfd");
}

Interrupts::~Interrupts() {
  pending();  // a signal left in the queue would end the program below
  ::close(fd_);
  const sigset_t set = interrupt_set();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

bool Interrupts::pending() {
  signalfd_siginfo info;
  return ::read(fd_, &info, sizeof info) == static_cast<ssize_t>(sizeof info);
}

bool LineReader::take_line(std::string& line) {
  const size_t end = buffer_.find('\n', searched_);
  if (end == std::string::npos) {
    searched_ = buffer_.size();
    if (searched_ > kMaxLineBytes) throw InputError("standard input: a line of more than 16 MiB");
    if (!ended_ || buffer_.empty()) return false;
    line.swap(buffer_);  // the last line has no end
    buffer_.clear();
  } else {
    line.assign(buffer_, 0, end);
    buffer_.erase(0, end + 1);
  }
  searched_ = 0;
  if (!line.empty() && line.back() == '\r') line.pop_back();
  return true;
}

LineKind LineReader::next(std::string& line) {
  char chunk[1 << 12];
  while (!take_line(line)) {
    if (ended_) return LineKind::kEnd;
    pollfd fds[2] = {{STDIN_FILENO, POLLIN, 0}, {interrupts_.descriptor(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0) {
      if (errno == EINTR) continue;
      throw_errno("waiting for standard input");
    }
    if (interrupts_.pending()) {
      buffer_.clear();
      searched_ = 0;
      return LineKind::kInterrupt;
    }
    if (fds[0].revents == 0) continue;
    const ssize_t n = ::read(STDIN_FILENO, chunk, sizeof chunk);
    if (n < 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      throw_errno("reading standard input");
    }
    ended_ = n == 0;
    buffer_.append(chunk, static_cast<size_t>(n));
  }
  return LineKind::kLine;
}

}  // namespace tamis::cli
