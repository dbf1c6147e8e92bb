#include "kernels/indexer_select/mask_selection.h"

#include <algorithm>

#include "kernels/indexer_select/indexer_select_impl.h"

namespace tamis {
namespace {

constexpr int64_t kTile = SelectionMask::kTile;

void reference(KernelContext&, const MaskSelectionArgs& a) {
  for (int64_t w = 0; w < a.words + selection_words(a.words); ++w) {
    std::fill_n(a.bits + w * a.stride, a.tokens, uint64_t{0});
  }
  const auto set = [&](int64_t first_word, int64_t t, int64_t bit) {
    a.bits[(first_word + bit / kTile) * a.stride + t] |= uint64_t{1} << (bit % kTile);
  };
  for (int64_t t = 0; t < a.tokens; ++t) {
    const int64_t position = a.sequences.position == nullptr ? t : a.sequences.position[t];
    for (int64_t i = 0; i < a.k && a.indices[t * a.k + i] >= 0; ++i) {
      const int64_t s = a.indices[t * a.k + i] - (t - position);
      set(0, t, s);
      set(a.words, t - position % kTile, s / kTile);
    }
  }
}

constexpr Implementation<MaskSelectionArgs> kList[] = {
    {"cuda", [](const MaskSelectionArgs&) { return true; }, mask_selection_cuda},
    {"reference", [](const MaskSelectionArgs&) { return true; }, reference},
};

// Each of the two chooses again among its own implementations.
void one_by_one(KernelContext& context, const SelectMaskArgs& args) {
  const IndexerSelectTrainArgs& a = args.select;
  indexer_select_train(context, a);
  mask_selection(context,
                 {a.indices, a.tokens, a.k, a.sequences, args.bits, args.stride, args.words});
}

constexpr Implementation<SelectMaskArgs> kBothList[] = {
    {"cuda", select_mask_supports, select_mask_cuda},
    {"cuda_topk", [](const SelectMaskArgs&) { return true; }, one_by_one},
    {"reference", [](const SelectMaskArgs&) { return true; }, one_by_one},
};

}  // namespace

void select_mask(KernelContext& context, const SelectMaskArgs& args) {
  dispatch<SelectMaskArgs>(context, "select_mask", kBothList, args);
}

void mask_selection(KernelContext& context, const MaskSelectionArgs& args) {
  dispatch<MaskSelectionArgs>(context, "mask_selection", kList, args);
}

}  // namespace tamis
