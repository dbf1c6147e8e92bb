// The implementations of indexer_select.
#pragma once

#include "kernels/indexer_select/indexer_select.h"

namespace tamis {

void indexer_select_reference(KernelContext& context, const IndexerSelectArgs& args);
void indexer_select_cuda(KernelContext& context, const IndexerSelectArgs& args);
void indexer_select_simd(KernelContext& context, const IndexerSelectArgs& args);

}  // namespace tamis
