#include "kernels/kv_gather/kv_gather.h"

#include <algorithm>

#include "kernels/kv_gather/kv_gather_impl.h"

namespace tamis {
namespace {

void kv_gather_reference(KernelContext& context, const KvGatherArgs& a) {
  const int64_t c = a.kv.layout.kv_lora, rope = a.kv.layout.rope, width = c + rope;
  const KvSequence& seq = a.tokens.sequences[a.tokens.sequence[0]];
  context.pool().run(a.positions, [&](int64_t p, int) {
    read_latent(a.kv, seq, p, a.latent + p * width);
    std::copy_n(a.latent + p * width + c, rope, a.k_pe + p * rope);
  });
}

constexpr Implementation<KvGatherArgs> kList[] = {
    {"cuda", [](const KvGatherArgs&) { return true; }, kv_gather_cuda},
    {"reference", [](const KvGatherArgs&) { return true; }, kv_gather_reference},
};

}  // namespace

void kv_gather(KernelContext& context, const KvGatherArgs& args) {
  dispatch<KvGatherArgs>(context, "kv_gather", kList, args);
}

}  // namespace tamis
