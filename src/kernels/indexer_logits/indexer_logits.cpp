#include "kernels/indexer_logits/indexer_logits.h"

#include "kernels/indexer_logits/indexer_logits_impl.h"
#include "kernels/simd/targets.h"

namespace tamis {
namespace {

constexpr Implementation<IndexerLogitsArgs> kList[] = {
    {"cuda", [](const IndexerLogitsArgs&) { return true; }, indexer_logits_cuda},
    {"simd", [](const IndexerLogitsArgs&) { return vectors_available(); }, indexer_logits_simd},
    {"reference", [](const IndexerLogitsArgs&) { return true; }, indexer_logits_reference},
};

}  // namespace

void indexer_logits(KernelContext& context, const IndexerLogitsArgs& args) {
  dispatch<IndexerLogitsArgs>(context, "indexer_logits", kList, args);
}

}  // namespace tamis
