// Lines of standard input, and Ctrl-C as an event instead of the end of the program.
//
//   Interrupts interrupts;            // before any thread is made
//   LineReader reader(interrupts);
//   while (reader.next(line) != LineKind::kEnd) { ...; if (interrupts.pending()) stop(); }
#pragma once

#include <string>

namespace tamis::cli {

// While one lives, SIGINT does not end the program. Threads made meanwhile take part in that.
class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  // Whether Ctrl-C was pressed since the last call.
  bool pending();
  int descriptor() const { return fd_; }

 private:
  int fd_ = -1;
};

enum class LineKind { kLine, kInterrupt, kEnd };

class LineReader {
 public:
  explicit LineReader(Interrupts& interrupts) : interrupts_(interrupts) {}

  // The next line without its end. kInterrupt: Ctrl-C while waiting, what was typed is dropped.
  // InputError for a line of more than 16 MiB, DeviceError if reading fails.
  LineKind next(std::string& line);

 private:
  bool take_line(std::string& line);

  Interrupts& interrupts_;
  std::string buffer_;
  size_t searched_ = 0;  // no line end before this offset
  bool ended_ = false;
};

}  // namespace tamis::cli
