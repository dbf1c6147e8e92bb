// Ranks as MPI processes. Of MPI it uses messages between two ranks and communicators, no
// collective of the library's own: group.cpp says why.
//
// On each pair of ranks runs one ordered stream of (Call, data). Each exchange begins with the
// Calls of all pairs, whatever the collective: some 50 bytes and one latency a call, so the check
// for calls that do not match is always on. Data follows once they agree.
#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <thread>

#include "base/error.h"
#include "base/log.h"
#include "comm/call.h"
#include "comm/group.h"
#include "comm/launcher.h"

namespace tamis {
namespace {

constexpr int kCallTag = 1;
constexpr int kDataTag = 2;
// Longer data goes as several messages, because MPI counts are int. The limit is far below 2^31 so
// that tests of ordinary size cross it.
constexpr size_t kMessageBytes = size_t{1} << 20;

void check(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw DeviceError(fmt::format("{}: {}", what, text));
}

// What all groups of the process share: MPI is up while it lives.
class Session {
 public:
  Session() {
    int done = 0;
    check(MPI_Initialized(&done), "MPI_Initialized");
    if (done != 0) throw UsageError("world_group: at most one call a process");
    int provided = 0;
    check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
    if (provided < MPI_THREAD_SERIALIZED) {
      throw DeviceError("MPI_Init_thread: this MPI allows calls from the main thread only");
    }
  }
  ~Session() { MPI_Finalize(); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Set once calls did not match or MPI failed: messages may be under way that nobody takes, so
  // the ranks can no longer end together.
  bool broken = false;
};

// Requests under way. Waits by testing and sleeping in turn: MPI_Waitall keeps a core busy, and
// ranks may be more than cores. Not by yielding: with other work on the machine, a thread that
// yields can wait tens of milliseconds for its next turn.
class Requests {
 public:
  explicit Requests(MPI_Comm comm) : comm_(comm) {}

  void send(const void* data, size_t bytes, int to, int tag) {
    for_each_message(bytes, [&](size_t begin, int count) {
      check(MPI_Isend(static_cast<const std::byte*>(data) + begin, count, MPI_BYTE, to, tag, comm_,
                      add()),
            "MPI_Isend");
    });
  }

  void recv(void* data, size_t bytes, int from, int tag) {
    for_each_message(bytes, [&](size_t begin, int count) {
      check(MPI_Irecv(static_cast<std::byte*>(data) + begin, count, MPI_BYTE, from, tag, comm_,
                      add()),
            "MPI_Irecv");
    });
  }

  void wait() {
    // A test of idle requests takes well under a microsecond.
    constexpr int kTests = 100;
    const auto count = static_cast<int>(requests_.size());
    for (int64_t tries = 1;; ++tries) {
      int done = 0;
      check(MPI_Testall(count, requests_.data(), &done, MPI_STATUSES_IGNORE), "MPI_Testall");
      if (done != 0) break;
      if (tries % kTests == 0) std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    requests_.clear();
  }

 private:
  template <typename F>
  void for_each_message(size_t bytes, F&& message) {
    for (size_t begin = 0; begin < bytes; begin += kMessageBytes) {
      message(begin, static_cast<int>(std::min(kMessageBytes, bytes - begin)));
    }
  }

  MPI_Request* add() {
    requests_.push_back(MPI_REQUEST_NULL);
    return &requests_.back();
  }

  MPI_Comm comm_;
  std::vector<MPI_Request> requests_;
};

int rank_in(MPI_Comm comm) {
  int rank = 0;
  check(MPI_Comm_rank(comm, &rank), "MPI_Comm_rank");
  return rank;
}

int size_of(MPI_Comm comm) {
  int size = 0;
  check(MPI_Comm_size(comm, &size), "MPI_Comm_size");
  return size;
}

class MpiGroup final : public Group {
 public:
  // Owns comm.
  MpiGroup(std::shared_ptr<Session> session, MPI_Comm comm, bool is_world)
      : Group(rank_in(comm), size_of(comm)),
        session_(std::move(session)),
        comm_(comm),
        is_world_(is_world),
        requests_(comm),
        unwinding_at_start_(std::uncaught_exceptions()) {
    check(MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  }

  ~MpiGroup() override {
    const bool unwinding = std::uncaught_exceptions() > unwinding_at_start_;
    if (is_world_) {
      if (unwinding || session_->broken) end_all("leaves its group after an error");
      take_leave();
    }
    // Freeing is collective: a rank that unwinds leaves it to the end of MPI.
    if (!unwinding && !session_->broken) MPI_Comm_free(&comm_);
  }

  void abandon(int exit_code) override { MPI_Abort(MPI_COMM_WORLD, exit_code); }

 private:
  void exchange(const Call& call, Outgoing to, Incoming from) override {
    guarded([&] {
      compare(call, to, from);
      move(to, from);
    });
  }

  // Every rank says what it does to every other and hears it from them.
  void compare(const Call& call, Outgoing to, Incoming from) {
    const auto ranks = static_cast<size_t>(size());
    std::vector<Call> mine(ranks, call);
    std::vector<Call> theirs(ranks);
    for (size_t r = 0; r < ranks; ++r) {
      if (r == self()) continue;
      mine[r].part = static_cast<int64_t>(to[r].size());
      requests_.recv(&theirs[r], sizeof(Call), static_cast<int>(r), kCallTag);
      requests_.send(&mine[r], sizeof(Call), static_cast<int>(r), kCallTag);
    }
    requests_.wait();
    for (size_t r = 0; r < ranks; ++r) {
      if (r == self()) continue;
      const auto expected = static_cast<int64_t>(from[r].size());
      refuse(mismatch(rank(), call, static_cast<int>(r), theirs[r], expected));
    }
  }

  void move(Outgoing to, Incoming from) {
    for (size_t r = 0; r < to.size(); ++r) {
      if (r == self()) continue;
      requests_.recv(from[r].data(), from[r].size(), static_cast<int>(r), kDataTag);
    }
    for (size_t r = 0; r < to.size(); ++r) {
      if (r == self()) continue;
      requests_.send(to[r].data(), to[r].size(), static_cast<int>(r), kDataTag);
    }
    if (!to[self()].empty() && to[self()].data() != from[self()].data()) {
      std::memcpy(from[self()].data(), to[self()].data(), to[self()].size());
    }
    requests_.wait();
  }

  void send_to(const Call& call, std::span<const std::byte> data, int to) override {
    guarded([&] {
      requests_.send(&call, sizeof(Call), to, kCallTag);
      requests_.send(data.data(), data.size(), to, kDataTag);
      requests_.wait();
    });
  }

  void recv_from(const Call& call, std::span<std::byte> data, int from) override {
    guarded([&] {
      Call theirs;
      requests_.recv(&theirs, sizeof(Call), from, kCallTag);
      requests_.wait();
      refuse(mismatch(rank(), call, from, theirs, static_cast<int64_t>(data.size())));
      requests_.recv(data.data(), data.size(), from, kDataTag);
      requests_.wait();
    });
  }

  std::unique_ptr<Group> part(int, std::span<const int> members) override {
    MPI_Comm comm = MPI_COMM_NULL;
    // Colours may be negative here, not in MPI: the lowest member stands for its group.
    check(MPI_Comm_split(comm_, members.front(), rank(), &comm), "MPI_Comm_split");
    return std::make_unique<MpiGroup>(session_, comm, false);
  }

  template <typename F>
  void guarded(F&& body) {
    if (session_->broken) {
      throw UsageError(fmt::format("rank {}: a call after an error in a group of MPI", rank()));
    }
    session_->broken = true;
    body();
    session_->broken = false;
  }

  static void refuse(const std::string& wrong) {
    if (!wrong.empty()) throw UsageError(wrong);
  }

  // Tells the others that this rank makes no more calls, so that one that still waits for it gets
  // an error instead of waiting for ever.
  void take_leave() {
    const std::vector<std::span<const std::byte>> to(static_cast<size_t>(size()));
    const std::vector<std::span<std::byte>> from(static_cast<size_t>(size()));
    try {
      compare({.op = Op::kFinish}, to, from);
    } catch (const std::exception& error) {
      end_all(fmt::format("cannot end: {}", error.what()));
    }
  }

  // For the destructor, which cannot throw: nobody else would tell why the processes end.
  void end_all(const std::string& why) {
    log_warning(fmt::format("rank {} {}; ending all ranks", rank(), why));
    abandon(1);
  }

  size_t self() const { return static_cast<size_t>(rank()); }

  std::shared_ptr<Session> session_;
  MPI_Comm comm_;
  bool is_world_;
  Requests requests_;
  int unwinding_at_start_;
};

}  // namespace

std::unique_ptr<Group> world_group() {
  if (launcher_variable().empty()) return single_group();
  auto session = std::make_shared<Session>();
  MPI_Comm world = MPI_COMM_NULL;
  check(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup");
  return std::make_unique<MpiGroup>(std::move(session), world, true);
}

void abandon_world(int exit_code) {
  int up = 0, down = 0;
  MPI_Initialized(&up);
  MPI_Finalized(&down);
  if (up != 0 && down == 0) MPI_Abort(MPI_COMM_WORLD, exit_code);
}

}  // namespace tamis
