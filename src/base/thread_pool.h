// A fixed set of threads that run the tasks of one loop at a time.
//
// How tasks fall on threads is not fixed, so a task may only write what belongs to it alone; then
// results do not depend on the number of threads. Starting a loop allocates nothing.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "base/function_ref.h"

namespace tamis {

class ThreadPool {
 public:
  // The calling thread of run() counts as one of num_threads (>= 1).
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, thread) for task in [0, tasks), thread in [0, num_threads). Returns when all
  // are done; rethrows the first exception of a task. One caller at a time; a body must not call
  // run.
  void run(int64_t tasks, FunctionRef<void(int64_t task, int thread)> body);

 private:
  void work(int thread);
  void drain(int thread);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<bool> stop_{false};
  const FunctionRef<void(int64_t, int)>* body_ = nullptr;
  int64_t tasks_ = 0;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> busy_{0};
  std::exception_ptr error_;
  std::mutex error_mutex_;
};

}  // namespace tamis
