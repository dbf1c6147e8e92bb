// The implementations of indexer_select.
#pragma once

#include "kernels/indexer_select/indexer_select.h"
#include "kernels/indexer_select/indexer_select_train.h"

namespace tamis {

void indexer_select_reference(KernelContext& context, const IndexerSelectArgs& args);
void indexer_select_cuda(KernelContext& context, const IndexerSelectArgs& args);
void indexer_select_train_cuda(KernelContext& context, const IndexerSelectTrainArgs& args);
void indexer_select_simd(KernelContext& context, const IndexerSelectArgs& args);

}  // namespace tamis
