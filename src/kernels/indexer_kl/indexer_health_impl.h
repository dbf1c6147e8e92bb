// The implementations of indexer_health.
#pragma once

#include "kernels/indexer_kl/indexer_health.h"

namespace tamis {

template <typename T>
void indexer_health_reference(KernelContext& context, const IndexerHealthArgs<T>& args);
void indexer_health_blocked(KernelContext& context, const IndexerHealthArgs<float>& args);

}  // namespace tamis
