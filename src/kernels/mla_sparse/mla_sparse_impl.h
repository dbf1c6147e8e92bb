// The implementations of mla_sparse.
#pragma once

#include "kernels/mla_sparse/mla_sparse.h"

namespace tamis {

void mla_sparse_reference(KernelContext& context, const MlaSparseArgs& args);

}  // namespace tamis
