// Memory that a context's operations work on, host or device: copies in and out, and zeros.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

void put(KernelContext& context, void* to, const void* host, int64_t bytes);
// Waits for the values.
void get(KernelContext& context, void* host, const void* from, int64_t bytes);
void zero(KernelContext& context, void* to, int64_t bytes);

}  // namespace tamis
