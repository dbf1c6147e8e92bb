#include "kernels/indexer_select/indexer_select.h"

#include "kernels/indexer_select/indexer_select_impl.h"
#include "kernels/simd/targets.h"

namespace tamis {
namespace {

constexpr Implementation<IndexerSelectArgs> kList[] = {
    {"cuda", [](const IndexerSelectArgs&) { return true; }, indexer_select_cuda},
    {"simd", [](const IndexerSelectArgs&) { return vectors_available(); }, indexer_select_simd},
    {"reference", [](const IndexerSelectArgs&) { return true; }, indexer_select_reference},
};

}  // namespace

void indexer_select(KernelContext& context, const IndexerSelectArgs& args) {
  // The device rotates where it reads the queries.
  if (args.query_rope.dim > 0 && context.backend() != Backend::kCuda) {
    rope(context, args.query_rope);
  }
  dispatch<IndexerSelectArgs>(context, "indexer_select", kList, args);
}

}  // namespace tamis
