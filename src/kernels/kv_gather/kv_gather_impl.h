// The implementations of kv_gather.
#pragma once

#include "kernels/kv_gather/kv_gather.h"

namespace tamis {

void kv_gather_cuda(KernelContext& context, const KvGatherArgs& args);

}  // namespace tamis
