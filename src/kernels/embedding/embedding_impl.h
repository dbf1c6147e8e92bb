// The implementations of embedding.
#pragma once

#include "kernels/embedding/embedding.h"

namespace tamis {

void embedding_cuda(KernelContext& context, const EmbeddingArgs& args);

}  // namespace tamis
