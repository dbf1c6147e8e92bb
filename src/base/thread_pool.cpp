#include "base/thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"

namespace tamis {
namespace {

// A worker spins this long for the next loop before it sleeps: inside a forward pass loops follow
// each other within microseconds, and waking a sleeping thread costs tens of them.
#if defined(__SANITIZE_THREAD__)
constexpr int kSpins = 200;  // it makes each a hundred times longer
#else
constexpr int kSpins = 20000;
#endif

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

// The threads besides the caller's, and what they share with it.
struct ThreadPool::Workers {
  explicit Workers(int num_workers);
  ~Workers();

  void run(int64_t tasks, const FunctionRef<void(int64_t, int)>& body);
  void work(int thread);
  void drain(int thread);

  std::vector<std::thread> threads;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<bool> stop{false};
  const FunctionRef<void(int64_t, int)>* body = nullptr;
  int64_t tasks = 0;
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int> busy{0};
  std::exception_ptr error;
  std::mutex error_mutex;
};

ThreadPool::Workers::Workers(int num_workers) {
  if (num_workers < 0) throw UsageError("threads: want at least 1");
  for (int i = 1; i <= num_workers; ++i) threads.emplace_back([this, i] { work(i); });
}

ThreadPool::Workers::~Workers() {
  {
    const std::lock_guard lock(mutex);
    stop = true;
    ++generation;
  }
  wake.notify_all();
  for (std::thread& t : threads) t.join();
}

void ThreadPool::Workers::run(int64_t count, const FunctionRef<void(int64_t, int)>& task) {
  {
    const std::lock_guard lock(mutex);
    body = &task;
    tasks = count;
    next.store(0, std::memory_order_relaxed);
    busy.store(static_cast<int>(threads.size()), std::memory_order_relaxed);
    generation.fetch_add(1, std::memory_order_release);
  }
  wake.notify_all();
  drain(0);
  // Yield in the end: with more threads than cores the worker waited for may need this core.
  for (int i = 0; busy.load(std::memory_order_acquire) != 0; ++i) {
    i < kSpins ? pause() : std::this_thread::yield();
  }
  if (error) {
    std::exception_ptr thrown;
    std::swap(thrown, error);
    std::rethrow_exception(thrown);
  }
}

void ThreadPool::Workers::drain(int thread) {
  for (;;) {
    const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
    if (task >= tasks) return;
    try {
      (*body)(task, thread);
    } catch (...) {
      const std::lock_guard lock(error_mutex);
      if (!error) error = std::current_exception();
      next.store(tasks, std::memory_order_relaxed);
    }
  }
}

void ThreadPool::Workers::work(int thread) {
  uint64_t seen = 0;
  for (;;) {
    for (int i = 0; i < kSpins && generation.load(std::memory_order_acquire) == seen; ++i) pause();
    if (generation.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex);
      wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
    }
    seen = generation.load(std::memory_order_acquire);
    if (stop) return;
    drain(thread);
    busy.fetch_sub(1, std::memory_order_release);
  }
}

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads), workers_(new Workers(num_threads - 1)) {}

ThreadPool::~ThreadPool() = default;

void ThreadPool::run(int64_t tasks, FunctionRef<void(int64_t, int)> body) {
  if (tasks <= 0) return;
  if (num_threads_ == 1 || tasks == 1) {
    for (int64_t i = 0; i < tasks; ++i) body(i, 0);
    return;
  }
  workers_->run(tasks, body);
}

}  // namespace tamis
