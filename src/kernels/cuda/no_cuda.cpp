// The x_cuda functions of a build without CUDA. They are never reached: a context of back end kCuda
// cannot be made in such a build, and no other may run them.
#include "base/error.h"
#include "kernels/cross_entropy/cross_entropy_impl.h"
#include "kernels/elementwise/elementwise_impl.h"
#include "kernels/embedding/embedding_impl.h"
#include "kernels/grouped_linear/grouped_linear_impl.h"
#include "kernels/hadamard/hadamard_impl.h"
#include "kernels/layer_norm/layer_norm_impl.h"
#include "kernels/linear/linear_impl.h"
#include "kernels/moe_gate/moe_gate_impl.h"
#include "kernels/moe_permute/moe_permute_impl.h"
#include "kernels/per_head_linear/per_head_linear_impl.h"
#include "kernels/rms_norm/rms_norm_impl.h"
#include "kernels/rope/rope_impl.h"
#include "kernels/swiglu/swiglu_impl.h"

namespace tamis {
namespace {

[[noreturn]] void refuse() {
  throw DeviceError("this build has no CUDA: configure with 'cmake --preset cuda'");
}

}  // namespace

void check_finite_cuda(KernelContext&, const CheckFiniteArgs&) { refuse(); }
void check_flags_cuda(KernelContext&, const CheckFlagsArgs&) { refuse(); }
void cross_entropy_cuda(KernelContext&, const CrossEntropyArgs&) { refuse(); }
void embedding_cuda(KernelContext&, const EmbeddingArgs&) { refuse(); }
void fill_cuda(KernelContext&, const FillArgs&) { refuse(); }
void gather_rows_cuda(KernelContext&, const GatherRowsArgs&) { refuse(); }
void grouped_linear_cuda(KernelContext&, const GroupedLinearArgs&) { refuse(); }
void hadamard_cuda(KernelContext&, const HadamardArgs&) { refuse(); }
bool hadamard_cuda_supports(const HadamardArgs&) { refuse(); }
void index_query_cuda(KernelContext&, const IndexQueryArgs&) { refuse(); }
void layer_norm_cuda(KernelContext&, const LayerNormArgs&) { refuse(); }
void linear_fp8_cuda(KernelContext&, const LinearFp8Args&) { refuse(); }
void linears_cuda(KernelContext&, const std::span<const LinearArgs>&) { refuse(); }
void moe_combine_cuda(KernelContext&, const MoeCombineArgs&) { refuse(); }
void moe_gate_cuda(KernelContext&, const MoeGateArgs&) { refuse(); }
bool moe_gate_cuda_supports(const MoeGateArgs&) { refuse(); }
void moe_permute_cuda(KernelContext&, const MoePermuteArgs&) { refuse(); }
bool moe_permute_cuda_supports(const MoePermuteArgs&) { refuse(); }
void per_head_linear_cuda(KernelContext&, const PerHeadLinearArgs&) { refuse(); }
void projections_cuda(KernelContext&, std::span<const LinearArgs>, bool) { refuse(); }
void rms_norm_cuda(KernelContext&, const RmsNormArgs&) { refuse(); }
void rope_cuda(KernelContext&, const RopeArgs&) { refuse(); }
void round_rows_cuda(KernelContext&, const RoundRowsArgs&) { refuse(); }
void select_window_cuda(KernelContext&, const SelectWindowArgs&) { refuse(); }
void swiglu_cuda(KernelContext&, const SwigluArgs&) { refuse(); }

}  // namespace tamis
