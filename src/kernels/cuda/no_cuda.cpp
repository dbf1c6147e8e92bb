// The x_cuda functions of a build without CUDA. They are never reached: a context of back end kCuda
// cannot be made in such a build, and no other may run them.
#include "base/error.h"
#include "kernels/elementwise/elementwise_impl.h"
#include "kernels/grouped_linear/grouped_linear_impl.h"
#include "kernels/rms_norm/rms_norm_impl.h"

namespace tamis {
namespace {

[[noreturn]] void refuse() {
  throw DeviceError("this build has no CUDA: configure with 'cmake --preset cuda'");
}

}  // namespace

void check_finite_cuda(KernelContext&, const CheckFiniteArgs&) { refuse(); }
void check_flags_cuda(KernelContext&, const CheckFlagsArgs&) { refuse(); }
void fill_cuda(KernelContext&, const FillArgs&) { refuse(); }
void gather_rows_cuda(KernelContext&, const GatherRowsArgs&) { refuse(); }
void grouped_linear_cuda(KernelContext&, const GroupedLinearArgs&) { refuse(); }
void index_query_cuda(KernelContext&, const IndexQueryArgs&) { refuse(); }
void rms_norm_cuda(KernelContext&, const RmsNormArgs&) { refuse(); }
void round_rows_cuda(KernelContext&, const RoundRowsArgs&) { refuse(); }
void select_window_cuda(KernelContext&, const SelectWindowArgs&) { refuse(); }

}  // namespace tamis
