// The implementations of kv_append.
#pragma once

#include "kernels/kv_append/kv_append.h"

namespace tamis {

void kv_append_cuda(KernelContext& context, const KvAppendArgs& args);

}  // namespace tamis
