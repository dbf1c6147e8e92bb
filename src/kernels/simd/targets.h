// Which instruction sets the vector code is compiled for; include before any Highway header.
//
// AVX2 and AVX-512 on x86, NEON on Arm. Sets without fused multiply-add are left out: they would
// round differently, and no machine that can hold a model lacks it. Scalable vectors cannot be
// members of a struct (lanes-inl.h), so SVE machines use NEON. On any other machine the operations
// fall back to their references: implementations ask vectors_available() in supports().
#pragma once

#define HWY_DISABLED_TARGETS                                                              \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | \
   HWY_RVV | HWY_PPC8)

namespace tamis {

// True if this machine has one of the instruction sets above.
bool vectors_available();

// Body of the variants for Highway's scalar target, which a file of vector code must have but
// which is never reached when vectors_available() was asked.
[[noreturn]] void throw_no_vectors();

}  // namespace tamis
