#include "kernels/mla_sparse/mla_sparse_mma.cuh"

namespace tamis::mla_mma {

int64_t shared_bytes_fp8(int heads, bool staged) { return shared_bytes<true>(heads, staged); }
void launch_fp8(const Launch& l) { launch<true>(l); }

}  // namespace tamis::mla_mma
