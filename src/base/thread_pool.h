// A fixed set of threads that run the tasks of one loop at a time.
//
// How tasks fall on threads is not fixed, so a task may only write what belongs to it alone; then
// results do not depend on the number of threads. Starting a loop allocates nothing.
#pragma once

#include <cstdint>

#include "base/function_ref.h"
#include "base/hidden.h"

namespace tamis {

class ThreadPool {
 public:
  // The calling thread of run() counts as one of num_threads (>= 1).
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Calls body(task, thread) for task in [0, tasks), thread in [0, num_threads). Returns when all
  // are done; rethrows the first exception of a task. One caller at a time; a body must not call
  // run.
  void run(int64_t tasks, FunctionRef<void(int64_t task, int thread)> body);

 private:
  struct Workers;

  int num_threads_;
  Hidden<Workers> workers_;
};

}  // namespace tamis
