#include "kernels/mla_dense/mla_dense_train.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/mla_dense/mla_dense.h"
#include "kernels/mla_dense/mla_dense_backward_impl.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

// The rows of a mask as mla_dense takes them: [tokens, k].
std::vector<int32_t> rows_of(const SelectionMask& mask, int64_t tokens, int64_t& k) {
  std::vector<std::vector<int32_t>> rows(static_cast<size_t>(tokens));
  k = 1;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int32_t>& row = rows[static_cast<size_t>(t)];
    for (int64_t s = 0; s <= t; ++s) {
      if (mask.has(t, s)) row.push_back(static_cast<int32_t>(s));
    }
    k = std::max(k, static_cast<int64_t>(row.size()));
  }
  std::vector<int32_t> indices;
  for (std::vector<int32_t>& row : rows) {
    row.resize(static_cast<size_t>(k), -1);
    indices.insert(indices.end(), row.begin(), row.end());
  }
  return indices;
}

// mla_dense chooses again among its own implementations.
void serve(KernelContext& context, const MlaDenseTrainArgs& args) {
  const MlaSequence<float>& in = args.in;
  std::vector<int32_t> position(static_cast<size_t>(in.tokens));
  std::iota(position.begin(), position.end(), 0);
  MlaDenseArgs a;
  a.q = in.q;
  a.tokens = in.tokens;
  a.heads = in.heads;
  a.nope = in.nope;
  a.rope = in.rope;
  a.v_dim = in.v_dim;
  a.position = position.data();
  a.kv = in.kv;
  a.k_pe = in.k_pe;
  a.softmax_scale = in.softmax_scale;
  a.out = args.out;
  std::vector<int32_t> indices;
  if (args.selected) {
    indices = rows_of(args.selected, in.tokens, a.k);
    a.indices = indices.data();
    a.positions = in.tokens;
  }
  mla_dense(context, a);
}

using Run = void (*)(KernelContext&, const MlaDenseTrainArgs&);

// run for each sequence.
template <Run run>
void each(KernelContext& context, const MlaDenseTrainArgs& a) {
  if (a.log_sum != nullptr && context.device() != nullptr) {
    context.device()->fill(a.log_sum, 0xFF,  // NaN
                           a.in.tokens * a.in.heads * static_cast<int64_t>(sizeof(float)));
  }
  for_each_begin(a.begins, a.in.tokens, [&](int64_t first, int64_t tokens) {
    run(context, {mla_sequence_at(a.in, first, tokens),
                  a.out + first * a.in.heads * a.in.v_dim,
                  {},
                  nullptr,
                  a.selected.from(first)});
  });
}

constexpr Implementation<MlaDenseTrainArgs> kList[] = {
    {"cuda_flash", [](const MlaDenseTrainArgs& a) { return mla_flash_supports(a.in); },
     mla_dense_train_flash},
    {"cuda", [](const MlaDenseTrainArgs& a) { return !a.selected; }, each<mla_dense_train_cuda>},
    {"reference", [](const MlaDenseTrainArgs&) { return true; }, each<serve>},
};

}  // namespace

void mla_dense_train(KernelContext& context, const MlaDenseTrainArgs& args) {
  dispatch<MlaDenseTrainArgs>(context, "mla_dense_train", kList, args);
}

}  // namespace tamis
