#include "kernels/mla_dense/mla_dense_train.h"

#include <numeric>
#include <vector>

#include "kernels/mla_dense/mla_dense.h"
#include "kernels/mla_dense/mla_dense_backward_impl.h"

namespace tamis {
namespace {

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
    run(context, {mla_sequence_at(a.in, first, tokens), a.out + first * a.in.heads * a.in.v_dim});
  });
}

constexpr Implementation<MlaDenseTrainArgs> kList[] = {
    {"cuda_flash", [](const MlaDenseTrainArgs& a) { return mla_flash_supports(a.in); },
     mla_dense_train_flash},
    {"cuda", [](const MlaDenseTrainArgs&) { return true; }, each<mla_dense_train_cuda>},
    {"reference", [](const MlaDenseTrainArgs&) { return true; }, each<serve>},
};

}  // namespace

void mla_dense_train(KernelContext& context, const MlaDenseTrainArgs& args) {
  dispatch<MlaDenseTrainArgs>(context, "mla_dense_train", kList, args);
}

}  // namespace tamis
