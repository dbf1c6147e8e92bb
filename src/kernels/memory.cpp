#include "kernels/memory.h"

#include <cstring>

#include "tensor/cuda/device.h"

namespace tamis {

void put(KernelContext& context, void* to, const void* host, int64_t bytes) {
  if (context.device() != nullptr) return context.device()->upload(to, host, bytes);
  if (bytes > 0) std::memcpy(to, host, static_cast<size_t>(bytes));
}

void get(KernelContext& context, void* host, const void* from, int64_t bytes) {
  if (context.device() != nullptr) return context.device()->download(host, from, bytes);
  if (bytes > 0) std::memcpy(host, from, static_cast<size_t>(bytes));
}

void zero(KernelContext& context, void* to, int64_t bytes) {
  if (context.device() != nullptr) return context.device()->fill(to, 0, bytes);
  if (bytes > 0) std::memset(to, 0, static_cast<size_t>(bytes));
}

}  // namespace tamis
