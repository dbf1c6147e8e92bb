#include "kernels/kv_append/kv_append.h"

#include "kernels/kv_append/kv_append_impl.h"

namespace tamis {
namespace {

void kv_append_reference(KernelContext& context, const KvAppendArgs& a) {
  const KvLayout& l = a.kv.layout;
  context.pool().run(a.tokens.num_tokens, [&](int64_t t, int) {
    const KvSequence& seq = a.tokens.sequences[a.tokens.sequence[t]];
    const int64_t s = a.tokens.position[t];
    if (a.c_kv != nullptr) {
      write_latent(a.kv, seq, s, a.c_kv + t * l.kv_lora, a.k_pe + t * a.k_pe_stride);
    }
    if (a.index_key != nullptr) {
      write_index_key(a.kv, seq, s, a.index_key + t * l.index_dim, a.ue8m0_scale);
    }
  });
}

constexpr Implementation<KvAppendArgs> kList[] = {
    {"cuda", [](const KvAppendArgs&) { return true; }, kv_append_cuda},
    {"reference", [](const KvAppendArgs&) { return true; }, kv_append_reference},
};

}  // namespace

void kv_append(KernelContext& context, const KvAppendArgs& args) {
  dispatch<KvAppendArgs>(context, "kv_append", kList, args);
}

}  // namespace tamis
