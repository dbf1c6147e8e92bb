#include "base/error.h"
#include "comm/nccl.h"

namespace tamis {

std::unique_ptr<Group> nccl_group(Group&, DeviceRank) {
  throw UsageError(
      "several GPUs: this build has no NCCL; install it (libnccl-dev), configure with "
      "-DTAMIS_CUDA=ON anew, and build");
}

}  // namespace tamis
