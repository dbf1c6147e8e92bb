#include "kernels/context.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "kernels/cuda/device_code.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

constexpr size_t kAlignment = 64;

void free_floats(float* p) { std::free(p); }

// With TAMIS_OP_TIMES set, the time of a CUDA context's operations on stderr at the end of the
// process: the device is waited for before each one, and what follows until the next is its own.
// The first third of its runs is left out: code is loaded in them.
class OpTimes {
 public:
  ~OpTimes() {
    std::vector<std::pair<double, std::string>> lines;
    double all = 0;
    for (const auto& [name, runs] : runs_) {
      const size_t skipped = runs.size() / 3;
      double sum = 0;
      for (size_t i = skipped; i < runs.size(); ++i) sum += runs[i];
      const double each = sum / static_cast<double>(runs.size() - skipped);
      const double total = each * static_cast<double>(runs.size());
      all += total;
      std::array<char, 160> line{};
      std::snprintf(line.data(), line.size(), "%10.2f ms %7zu x %9.1f us  %s\n", 1e3 * total,
                    runs.size(), 1e6 * each, name.c_str());
      lines.emplace_back(-total, line.data());
    }
    std::sort(lines.begin(), lines.end());
    std::fprintf(stderr, "%10.2f ms in operations\n", 1e3 * all);
    for (const auto& [key, line] : lines) std::fputs(line.c_str(), stderr);
  }

  void start(DeviceContext& device, const char* op, const char* implementation) {
    device.synchronize();
    const auto now = std::chrono::steady_clock::now();
    if (last_ != nullptr) {
      last_->push_back(std::chrono::duration<double>(now - since_).count());
    }
    last_ = &runs_[std::string(op) + ": " + implementation];
    since_ = std::chrono::steady_clock::now();
  }

 private:
  std::map<std::string, std::vector<double>> runs_;
  std::vector<double>* last_ = nullptr;
  std::chrono::steady_clock::time_point since_;
};

OpTimes* op_times() {
  static const std::unique_ptr<OpTimes> times =
      std::getenv("TAMIS_OP_TIMES") != nullptr ? std::make_unique<OpTimes>() : nullptr;
  return times.get();
}

std::string full_name(std::string_view implementation) {
  return implementation == "ref" ? "reference" : std::string(implementation);
}

}  // namespace

Backend backend_from_name(std::string_view name) {
  if (name == "reference") return Backend::kReference;
  if (name == "cpu") return Backend::kCpu;
  if (name == "cuda") return Backend::kCuda;
  throw UsageError("unknown back end '" + printable(name) + "': want reference, cpu or cuda");
}

std::string_view backend_name(Backend backend) {
  switch (backend) {
    case Backend::kReference:
      return "reference";
    case Backend::kCpu:
      return "cpu";
    case Backend::kCuda:
      return "cuda";
  }
  return "";
}

struct KernelContext::State {
  struct Buffer {
    std::unique_ptr<float[], void (*)(float*)> data{nullptr, nullptr};
    int64_t floats = 0;
  };
  static constexpr int kSlots = 8;

  State(int num_threads, Backend backend_, int ordinal) : pool(num_threads), backend(backend_) {
    if (backend == Backend::kCuda) {
      device = std::make_unique<DeviceContext>(ordinal);
      check_device_code(*device);
    }
    buffers.resize(static_cast<size_t>(num_threads) * kSlots);
  }

  ThreadPool pool;
  Backend backend;
  std::unique_ptr<DeviceContext> device;
  std::map<std::string, std::string, std::less<>> forced;
  std::vector<Buffer> buffers;
  std::vector<Choice> ran;
};

KernelContext::KernelContext(int num_threads, Backend backend, int ordinal)
    : state_(new State(num_threads, backend, ordinal)) {}

KernelContext::~KernelContext() = default;

ThreadPool& KernelContext::pool() { return state_->pool; }

Backend KernelContext::backend() const { return state_->backend; }

DeviceContext* KernelContext::device() const { return state_->device.get(); }

void KernelContext::force(std::string_view op, std::string_view name) {
  state_->forced[std::string(op)] = full_name(name);
}

void KernelContext::force_list(std::string_view list) {
  while (!list.empty()) {
    const size_t end = std::min(list.find(','), list.size());
    const std::string_view item = list.substr(0, end);
    const size_t colon = item.find(':');
    if (colon == std::string_view::npos || colon == 0 || colon + 1 == item.size()) {
      throw UsageError("TAMIS_OP: want op:implementation[,...], got '" + printable(item) + "'");
    }
    force(item.substr(0, colon), item.substr(colon + 1));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
}

bool KernelContext::allowed(std::string_view op, std::string_view implementation) const {
  if ((backend() == Backend::kCuda) != implementation.starts_with("cuda")) return false;
  const auto it = state_->forced.find(op);
  if (it != state_->forced.end()) return it->second == implementation;
  return backend() != Backend::kReference || implementation == "reference";
}

float* KernelContext::scratch(int thread, int slot, int64_t floats) {
  const size_t place = static_cast<size_t>(thread) * State::kSlots + static_cast<size_t>(slot);
  State::Buffer& b = state_->buffers[place];
  if (b.floats < floats) {
    const size_t bytes =
        (static_cast<size_t>(floats) * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
    auto* p = static_cast<float*>(std::aligned_alloc(kAlignment, bytes));
    if (p == nullptr) throw std::bad_alloc();
    b.data = {p, free_floats};
    b.floats = floats;
  }
  return b.data.get();
}

void KernelContext::note(const char* op, const char* implementation) {
  if (op_times() != nullptr && device() != nullptr) {
    op_times()->start(*device(), op, implementation);
  }
  for (const Choice& c : state_->ran) {
    if (c.op == op && c.implementation == implementation) return;
  }
  state_->ran.push_back({op, implementation});
}

std::span<const Choice> KernelContext::ran() const { return state_->ran; }

void throw_no_implementation(const KernelContext& context, const char* op) {
  throw UsageError(std::string("[") + op + "] no allowed implementation of back end " +
                   std::string(backend_name(context.backend())) + " supports these arguments");
}

}  // namespace tamis
