// The x_cuda functions of a build without CUDA. They are never reached: a context of back end kCuda
// cannot be made in such a build, and no other may run them.
#include "base/error.h"
#include "kernels/rms_norm/rms_norm_impl.h"

namespace tamis {
namespace {

[[noreturn]] void refuse() {
  throw DeviceError("this build has no CUDA: configure with 'cmake --preset cuda'");
}

}  // namespace

void rms_norm_cuda(KernelContext&, const RmsNormArgs&) { refuse(); }

}  // namespace tamis
