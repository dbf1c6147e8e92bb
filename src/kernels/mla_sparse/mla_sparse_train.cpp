#include "kernels/mla_sparse/mla_sparse_train.h"

#include "kernels/kv_plain.h"
#include "kernels/mla_sparse/mla_sparse.h"
#include "kernels/mla_sparse/mla_sparse_backward_impl.h"

namespace tamis {
namespace {

// mla_sparse chooses again among its own implementations.
void serve(KernelContext& context, const MlaSparseTrainArgs& args) {
  const MlaSparseBackwardArgs<float>& in = args.in;
  PlainCache cache(in.first + in.tokens, in.kv_lora, in.rope, 0);
  cache.append(context, in.c_kv, in.k_pe, in.rope, nullptr);
  MlaSparseArgs a;
  a.q_latent = in.q_latent;
  a.q_pe = in.q_pe;
  a.q_pe_token_stride = in.heads * in.q_pe_stride;
  a.q_pe_head_stride = in.q_pe_stride;
  a.heads = in.heads;
  a.kv = cache.layer();
  a.tokens = cache.tokens();
  a.tokens.num_tokens = in.tokens;
  a.tokens.sequence += in.first;
  a.tokens.position += in.first;
  a.indices = in.indices;
  a.k = in.k;
  a.softmax_scale = in.softmax_scale;
  a.out = args.out;
  mla_sparse(context, a);
}

constexpr Implementation<MlaSparseTrainArgs> kList[] = {
    {"cuda_few", [](const MlaSparseTrainArgs& a) { return mla_sparse_few_supports(a.in); },
     mla_sparse_train_few},
    {"cuda_many", [](const MlaSparseTrainArgs& a) { return mla_sparse_many_supports(a.in); },
     mla_sparse_train_many},
    {"cuda", [](const MlaSparseTrainArgs&) { return true; }, mla_sparse_train_cuda},
    {"reference", [](const MlaSparseTrainArgs&) { return true; }, serve},
};

}  // namespace

void mla_sparse_train(KernelContext& context, const MlaSparseTrainArgs& args) {
  dispatch<MlaSparseTrainArgs>(context, "mla_sparse_train", kList, args);
}

}  // namespace tamis
