#include "kernels/indexer_select/indexer_select_train.h"

#include <vector>

#include "kernels/indexer_select/indexer_select_impl.h"
#include "kernels/kv_plain.h"

namespace tamis {
namespace {

// indexer_select chooses again among its own implementations.
void serve(KernelContext& context, const IndexerSelectTrainArgs& args) {
  // The latent part of the cache stays empty: the indexer reads its own keys alone.
  PlainCache cache(args.tokens, 1, 0, args.dim);
  const std::vector<float> nothing(static_cast<size_t>(args.tokens));
  cache.append(context, nothing.data(), nothing.data(), 0, args.keys);
  std::vector<uint8_t> has_nan(static_cast<size_t>(args.tokens));
  IndexerSelectArgs a;
  a.in = {args.q, args.w, args.heads, cache.layer(), cache.tokens()};
  a.k = args.k;
  a.indices = args.indices;
  a.has_nan = has_nan.data();
  indexer_select(context, a);
}

constexpr Implementation<IndexerSelectTrainArgs> kList[] = {
    {"cuda", [](const IndexerSelectTrainArgs&) { return true; }, indexer_select_train_cuda},
    {"reference", [](const IndexerSelectTrainArgs&) { return true; }, serve},
};

}  // namespace

void indexer_select_train(KernelContext& context, const IndexerSelectTrainArgs& args) {
  dispatch<IndexerSelectTrainArgs>(context, "indexer_select_train", kList, args);
}

}  // namespace tamis
