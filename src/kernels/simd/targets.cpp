#include "kernels/simd/targets.h"

#include <hwy/highway.h>
#include <hwy/targets.h>

#include "base/error.h"

namespace tamis {

bool vectors_available() {
  // Asked once: cpuid traps in a virtual machine and costs more than a small product.
  static const bool available = (hwy::SupportedTargets() & (HWY_AVX2 | HWY_AVX3 | HWY_NEON)) != 0;
  return available;
}

void throw_no_vectors() { throw UsageError("vector code needs AVX2, AVX-512 or NEON"); }

}  // namespace tamis
