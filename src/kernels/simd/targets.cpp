#include "kernels/simd/targets.h"

#include <hwy/highway.h>
#include <hwy/targets.h>

#include "base/error.h"

namespace tamis {

bool vectors_available() {
  return (hwy::SupportedTargets() & (HWY_AVX2 | HWY_AVX3 | HWY_NEON)) != 0;
}

void throw_no_vectors() { throw UsageError("vector code needs AVX2, AVX-512 or NEON"); }

}  // namespace tamis
