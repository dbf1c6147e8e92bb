// What an operation needs besides its arguments: threads, scratch memory, and which of its
// implementations may run. One context belongs to one engine; operations on it run one at a time.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/hidden.h"
#include "base/thread_pool.h"

namespace tamis {

class DeviceContext;  // tensor/cuda/device.h

enum class Backend { kReference, kCpu, kCuda };

// "reference", "cpu", "cuda"; UsageError for any other name, saying which exist.
Backend backend_from_name(std::string_view name);
std::string_view backend_name(Backend backend);

// An implementation that has run: both names are the program's own.
struct Choice {
  const char* op;
  const char* implementation;
};

class KernelContext {
 public:
  // kCuda: opens the device `ordinal`; DeviceError if that fails. Every pointer that an operation
  // is then given is a device pointer, and operations return before they have run, in order.
  explicit KernelContext(int num_threads, Backend backend = Backend::kCpu, int ordinal = 0);

  ~KernelContext();

  ThreadPool& pool();
  Backend backend() const;
  // Null unless the back end is kCuda.
  DeviceContext* device() const;

  // Lets only implementation `name` of `op` run, e.g. ("mla_sparse", "reference").
  void force(std::string_view op, std::string_view name);
  // Parses "op:impl[,op:impl...]" (the TAMIS_OP variable); "ref" means "reference".
  void force_list(std::string_view list);
  // kCuda runs implementations named "cuda..." and nothing else; the others never run those.
  bool allowed(std::string_view op, std::string_view implementation) const;

  // At least `floats` floats for `thread` alone, 64-byte aligned, contents undefined. Grows to the
  // largest request and stays: a steady loop allocates nothing. Valid until the next call for the
  // same thread and slot; an operation that needs several buffers uses several slots.
  float* scratch(int thread, int slot, int64_t floats);

  // Records that an implementation ran; kernels/explain.h lists them.
  void note(const char* op, const char* implementation);
  std::span<const Choice> ran() const;

 private:
  struct State;

  Hidden<State> state_;
};

// One implementation of an operation. Lists are ordered, fastest first, the reference last.
template <typename Args>
struct Implementation {
  const char* name;
  bool (*supports)(const Args& args);
  void (*run)(KernelContext& context, const Args& args);
};

[[noreturn]] void throw_no_implementation(const KernelContext& context, const char* op);

// Runs the first implementation of the list that is allowed and supports the arguments.
template <typename Args>
void dispatch(KernelContext& context, const char* op, std::span<const Implementation<Args>> list,
              const Args& args) {
  for (const Implementation<Args>& impl : list) {
    if (context.allowed(op, impl.name) && impl.supports(args)) {
      context.note(op, impl.name);
      impl.run(context, args);
      return;
    }
  }
  throw_no_implementation(context, op);
}

}  // namespace tamis
