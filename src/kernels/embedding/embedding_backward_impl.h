// The implementations of embedding_backward.
#pragma once

#include "kernels/embedding/embedding_backward.h"

namespace tamis {

void embedding_backward_cuda(KernelContext& context, const EmbeddingBackwardArgs<float>& args);

}  // namespace tamis
