// Ranks as threads of one process. Every group of a run shares one Hall: a mutex, a condition
// variable, and a seat for each rank that says what the rank waits for. Data moves by copying
// straight out of the sender's buffer, which therefore stays put until all have copied.
#include <fmt/format.h>

#include <condition_variable>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>

#include "base/error.h"
#include "comm/call.h"
#include "comm/group.h"

namespace tamis {
namespace {

using Lock = std::unique_lock<std::mutex>;

// What the ranks of one group show each other. All of it under the hall's mutex, except that
// between the two meetings of an exchange the slots are constant and read without it.
struct Room {
  explicit Room(int ranks)
      : slots(static_cast<size_t>(ranks)), boxes(slots.size() * slots.size()) {}

  struct Slot {
    const Call* call = nullptr;
    std::span<const std::span<const std::byte>> to;
  };
  struct Box {  // a message from one rank to another
    const Call* call = nullptr;
    std::span<const std::byte> data;
    bool full = false;
  };
  Box& box(int from, int to) {
    return boxes[static_cast<size_t>(from) * slots.size() + static_cast<size_t>(to)];
  }

  std::vector<Slot> slots;
  std::vector<Box> boxes;
  size_t arrived = 0;
  int64_t meetings = 0;
};

class Hall {
 public:
  explicit Hall(int ranks) : seats_(static_cast<size_t>(ranks)) {}

  Lock lock() { return Lock(mutex_); }
  void notify() { changed_.notify_all(); }

  // Waits until ready(); throws instead once any rank has failed.
  void wait(Lock& lock, int seat, const Call& call, FunctionRef<bool()> ready) {
    refuse_after_failure();
    Seat& own = seats_[static_cast<size_t>(seat)];
    own = {.ready = &ready, .call = &call, .finished = false};
    if (!ready()) {
      find_deadlock(lock);
      changed_.wait(lock, [&] { return ready() || failure_; });
    }
    own = {};
    // A rank that saw the meeting take place goes on even if a failure followed: the others of
    // that meeting count on it.
    if (!ready()) refuse_after_failure();
  }

  // Waits until ready(), which is known to come; the rank counts as running.
  void wait_surely(Lock& lock, FunctionRef<bool()> ready) {
    changed_.wait(lock, [&] { return ready(); });
  }

  void refuse_after_failure() const {
    if (failure_) throw DeviceError(fmt::format("another rank failed: {}", reason_));
  }

  // Remembers the first failure of the run and wakes everyone.
  void fail(const Lock&, std::exception_ptr failure, const std::string& reason) {
    if (!failure_) {
      failure_ = std::move(failure);
      reason_ = reason;
    }
    notify();
  }

  void finish(int seat) {
    const Lock held = lock();
    seats_[static_cast<size_t>(seat)] = {.ready = nullptr, .call = nullptr, .finished = true};
    find_deadlock(held);
  }

  std::exception_ptr failure() {
    const Lock held = lock();
    return failure_;
  }

  // The room of a new group: the first of its members to come makes it, the last takes it out.
  std::shared_ptr<Room> enter_part(const Room* parent, int64_t number, int colour, int members) {
    const Lock held = lock();
    const auto key = std::tuple(parent, number, colour);
    Opening& opening = openings_[key];
    if (!opening.room) opening.room = std::make_shared<Room>(members);
    std::shared_ptr<Room> room = opening.room;
    if (++opening.entered == members) openings_.erase(key);
    return room;
  }

 private:
  struct Seat {
    const FunctionRef<bool()>* ready = nullptr;  // set while the rank waits
    const Call* call = nullptr;
    bool finished = false;
  };
  struct Opening {
    std::shared_ptr<Room> room;
    int entered = 0;
  };

  // Ranks only wake each other, so when every rank waits or has returned, and none could go on,
  // none ever will.
  void find_deadlock(const Lock&) {
    bool waiting = false;
    std::string what;
    for (size_t rank = 0; rank < seats_.size(); ++rank) {
      const Seat& seat = seats_[rank];
      if (!seat.finished && (seat.ready == nullptr || (*seat.ready)())) return;
      waiting = waiting || !seat.finished;
      what += fmt::format("{} rank {} {}", rank == 0 ? "" : ";", rank,
                          seat.finished ? "has returned" : "waits in " + describe(*seat.call));
    }
    if (!waiting || failure_) return;
    reason_ = "no rank can go on:" + what;
    failure_ = std::make_exception_ptr(UsageError(reason_));
    notify();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Seat> seats_;
  std::exception_ptr failure_;
  std::string reason_;
  std::map<std::tuple<const Room*, int64_t, int>, Opening> openings_;
};

class ThreadGroup final : public Group {
 public:
  // seat: the rank in the whole run.
  ThreadGroup(Hall* hall, std::shared_ptr<Room> room, int rank, int seat)
      : Group(rank, static_cast<int>(room->slots.size())),
        hall_(hall),
        room_(std::move(room)),
        seat_(seat) {}

  void abandon(int exit_code) override {
    fail(hall_->lock(), fmt::format("rank {} gave up with exit code {}", seat_, exit_code));
  }

 private:
  void exchange(const Call& call, Outgoing to, Incoming from) override {
    {
      Lock lock = hall_->lock();
      hall_->refuse_after_failure();
      room_->slots[self()] = {&call, to};
      meet(lock, call);
    }
    const std::string wrong = copy_from_all(call, from);
    {
      // Every rank of the first meeting comes here, whatever it found, because others may still
      // copy from its buffers: this meeting always takes place.
      Lock lock = hall_->lock();
      meet_again(lock);
      if (!wrong.empty()) refuse(lock, wrong);
    }
  }

  void meet(Lock& lock, const Call& call) {
    const int64_t before = room_->meetings;
    arrive();
    hall_->wait(lock, seat_, call, [&] { return room_->meetings != before; });
  }

  void arrive() {
    if (++room_->arrived == room_->slots.size()) {
      room_->arrived = 0;
      ++room_->meetings;
      hall_->notify();
    }
  }

  void meet_again(Lock& lock) {
    const int64_t before = room_->meetings;
    arrive();
    hall_->wait_surely(lock, [&] { return room_->meetings != before; });
  }

  std::string copy_from_all(const Call& call, Incoming from) {
    for (size_t r = 0; r < from.size(); ++r) {
      Call theirs = *room_->slots[r].call;
      const std::span<const std::byte> data = room_->slots[r].to[self()];
      theirs.part = static_cast<int64_t>(data.size());
      const auto expected = static_cast<int64_t>(from[r].size());
      std::string wrong = mismatch(rank(), call, static_cast<int>(r), theirs, expected);
      if (!wrong.empty()) return wrong;
      if (!data.empty() && data.data() != from[r].data()) {
        std::memcpy(from[r].data(), data.data(), data.size());
      }
    }
    return "";
  }

  void send_to(const Call& call, std::span<const std::byte> data, int to) override {
    Lock lock = hall_->lock();
    hall_->refuse_after_failure();
    Room::Box& box = room_->box(rank(), to);
    box = {&call, data, true};
    hall_->notify();
    hall_->wait(lock, seat_, call, [&] { return !box.full; });
  }

  void recv_from(const Call& call, std::span<std::byte> data, int from) override {
    Lock lock = hall_->lock();
    Room::Box& box = room_->box(from, rank());
    hall_->wait(lock, seat_, call, [&] { return box.full; });
    hall_->refuse_after_failure();  // a sender that failed has taken its buffer away
    const auto expected = static_cast<int64_t>(data.size());
    const std::string wrong = mismatch(rank(), call, from, *box.call, expected);
    if (!wrong.empty()) refuse(lock, wrong);
    // Under the mutex: the sender may leave as soon as it is free.
    if (!data.empty()) std::memcpy(data.data(), box.data.data(), data.size());
    box = {};
    hall_->notify();
  }

  std::unique_ptr<Group> part(int colour, std::span<const int> members) override {
    const auto count = static_cast<int>(members.size());
    int index = 0;
    while (members[static_cast<size_t>(index)] != rank()) ++index;
    auto room = hall_->enter_part(room_.get(), room_->meetings, colour, count);
    return std::make_unique<ThreadGroup>(hall_, std::move(room), index, seat_);
  }

  void fail(const Lock& lock, const std::string& reason) {
    hall_->fail(lock, std::make_exception_ptr(DeviceError(reason)), reason);
  }

  [[noreturn]] void refuse(const Lock& lock, const std::string& reason) {
    hall_->fail(lock, std::make_exception_ptr(UsageError(reason)), reason);
    throw UsageError(reason);
  }

  size_t self() const { return static_cast<size_t>(rank()); }

  Hall* hall_;
  std::shared_ptr<Room> room_;
  int seat_;
};

std::string reason_of(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "an unknown exception";
  }
}

void run_rank(Hall& hall, const std::shared_ptr<Room>& room, int rank,
              FunctionRef<void(Group&)> body) {
  try {
    ThreadGroup group(&hall, room, rank, rank);
    body(group);
  } catch (...) {
    const std::exception_ptr failure = std::current_exception();
    const std::string reason = reason_of(failure);
    hall.fail(hall.lock(), failure, fmt::format("rank {}: {}", rank, reason));
  }
  hall.finish(rank);
}

}  // namespace

void run_as_threads(int ranks, FunctionRef<void(Group&)> body) {
  if (ranks < 1) throw UsageError(fmt::format("run_as_threads: {} ranks, want at least 1", ranks));
  Hall hall(ranks);
  const auto room = std::make_shared<Room>(ranks);
  std::vector<std::thread> threads;
  try {
    threads.reserve(static_cast<size_t>(ranks));
    for (int rank = 0; rank < ranks; ++rank) {
      threads.emplace_back([&hall, &room, rank, body] { run_rank(hall, room, rank, body); });
    }
  } catch (...) {
    hall.fail(hall.lock(), std::current_exception(), "a thread could not be started");
  }
  for (std::thread& thread : threads) thread.join();
  if (hall.failure()) std::rethrow_exception(hall.failure());
}

}  // namespace tamis
