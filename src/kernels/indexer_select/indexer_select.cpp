#include "kernels/indexer_select/indexer_select.h"

#include "kernels/indexer_select/indexer_select_impl.h"

namespace tamis {
namespace {

constexpr Implementation<IndexerSelectArgs> kList[] = {
    {"reference", [](const IndexerSelectArgs&) { return true; }, indexer_select_reference},
};

}  // namespace

void indexer_select(KernelContext& context, const IndexerSelectArgs& args) {
  dispatch<IndexerSelectArgs>(context, "indexer_select", kList, args);
}

}  // namespace tamis
