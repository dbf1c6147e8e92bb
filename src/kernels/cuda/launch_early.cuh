// Programmatic dependent launch: a kernel is brought up while the one before it still runs.
#pragma once

#include <type_traits>

#include "kernels/cuda/launch.cuh"

namespace tamis {

// Puts `kernel` on the stream so that its blocks start while the kernel before it still runs;
// before sm_90 it is an ordinary launch. The kernel's first statement is await_previous().
void launch_early(KernelContext& context, const char* name, const void* kernel, dim3 grid,
                  unsigned threads, size_t shared_bytes, void** args);

template <typename... Params>
void launch_early(KernelContext& context, const char* name, void (*kernel)(Params...), dim3 grid,
                  unsigned threads, size_t shared_bytes, std::type_identity_t<Params>... params) {
  void* args[] = {&params...};
  launch_early(context, name, reinterpret_cast<const void*>(kernel), grid, threads, shared_bytes,
               args);
}

// Waits until the kernels before this one are done and what they wrote can be read.
__device__ inline void await_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

}  // namespace tamis
