#include "kernels/mla_sparse/mla_sparse_mma.cuh"

namespace tamis::mla_mma {

int64_t shared_bytes_bf16(int heads, bool staged) { return shared_bytes<false>(heads, staged); }
void launch_bf16(const Launch& l) { launch<false>(l); }

}  // namespace tamis::mla_mma
