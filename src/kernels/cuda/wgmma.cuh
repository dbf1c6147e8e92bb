// wgmma: products of a warpgroup (four warps, the first a multiple of four), sm_90a.
//
//   d [64, kN] float += a [64, 16] b [16, kN]      a in registers, b in shared memory
//
// Warp w of the four has rows 16w .. 16w + 15; in them registers of a and d lie as mma.cuh says, d
// in pieces of 8 columns. b is [kN, 16] with neighbouring k together: 32 bytes of rows of 128
// bytes, whose 16-byte chunks are exchanged (chunk ^ row % 8), groups of 8 rows one after the
// other, 1,024 bytes each, aligned so. A product runs on its own: d and a are not to be touched
// before wgmma_wait says that it is done.
#pragma once

#include <cstdint>

#include "kernels/cuda/hopper.cuh"

namespace tamis::hopper {

// b at `shared`, its first group of 8 rows; plus 2 for every 16 columns further on.
__device__ inline uint64_t wgmma_operand(const void* shared) {
  constexpr uint64_t kGroupStride = uint64_t{1024 / 16} << 32, kExchange128 = uint64_t{1} << 62;
  return (shared_address(shared) & 0x3FFFF) / 16 | uint64_t{1} << 16 | kGroupStride | kExchange128;
}

// Before the first product, and when ordinary code has written its registers since.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Until at most kPending groups of products are unfinished.
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// With `add` false d = a b.
template <bool kF16, int kN>
struct Wgmma;

// clang-format off
#define TAMIS_D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
  "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define TAMIS_R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define TAMIS_R1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define TAMIS_R2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define TAMIS_R3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define TAMIS_R4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define TAMIS_R5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define TAMIS_R6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define TAMIS_R7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define TAMIS_R8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define TAMIS_R9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define TAMIS_R10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define TAMIS_R11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define TAMIS_WGMMA(kF16, type, kN, registers, a0, a1, a2, a3, b, add, ...) \
  template <> \
  struct Wgmma<kF16, kN> { \
    static __device__ void multiply(float* d, const uint32_t (&a)[4], uint64_t operand, bool keep) { \
      asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, %" #add ", 0;\n" \
                   "wgmma.mma_async.sync.aligned.m64n" #kN "k16.f32." type "." type " {" registers "}, {%" #a0 \
                   ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", keep, 1, 1, 0;\n}\n" \
                   : __VA_ARGS__ \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(operand), \
                     "r"(static_cast<int>(keep))); \
    } \
  };
TAMIS_WGMMA(false, "bf16", 64, TAMIS_R0 ", " TAMIS_R1 ", " TAMIS_R2 ", " TAMIS_R3,
            32, 33, 34, 35, 36, 37,
            TAMIS_D8(0), TAMIS_D8(8), TAMIS_D8(16), TAMIS_D8(24))
TAMIS_WGMMA(true, "f16", 64, TAMIS_R0 ", " TAMIS_R1 ", " TAMIS_R2 ", " TAMIS_R3,
            32, 33, 34, 35, 36, 37,
            TAMIS_D8(0), TAMIS_D8(8), TAMIS_D8(16), TAMIS_D8(24))
TAMIS_WGMMA(false, "bf16", 96, TAMIS_R0 ", " TAMIS_R1 ", " TAMIS_R2 ", " TAMIS_R3 ", " TAMIS_R4 ", " TAMIS_R5,
            48, 49, 50, 51, 52, 53,
            TAMIS_D8(0), TAMIS_D8(8), TAMIS_D8(16), TAMIS_D8(24), TAMIS_D8(32), TAMIS_D8(40))
TAMIS_WGMMA(true, "f16", 96, TAMIS_R0 ", " TAMIS_R1 ", " TAMIS_R2 ", " TAMIS_R3 ", " TAMIS_R4 ", " TAMIS_R5,
            48, 49, 50, 51, 52, 53,
            TAMIS_D8(0), TAMIS_D8(8), TAMIS_D8(16), TAMIS_D8(24), TAMIS_D8(32), TAMIS_D8(40))
TAMIS_WGMMA(false, "bf16", 128, TAMIS_R0 ", " TAMIS_R1 ", " TAMIS_R2 ", " TAMIS_R3 ", " TAMIS_R4 ", " TAMIS_R5 ", " TAMIS_R6 ", " TAMIS_R7,
            64, 65, 66, 67, 68, 69,
            TAMIS_D8(0), TAMIS_D8(8), TAMIS_D8(16), TAMIS_D8(24), TAMIS_D8(32), TAMIS_D8(40), TAMIS_D8(48), TAMIS_D8(56))
TAMIS_WGMMA(true, "f16", 128, TAMIS_R0 ", " TAMIS_R1 ", " TAMIS_R2 ", " TAMIS_R3 ", " TAMIS_R4 ", " TAMIS_R5 ", " TAMIS_R6 ", " TAMIS_R7,
            64, 65, 66, 67, 68, 69,
            TAMIS_D8(0), TAMIS_D8(8), TAMIS_D8(16), TAMIS_D8(24), TAMIS_D8(32), TAMIS_D8(40), TAMIS_D8(48), TAMIS_D8(56))
TAMIS_WGMMA(false, "bf16", 160, TAMIS_R0 ", " TAMIS_R1 ", " TAMIS_R2 ", " TAMIS_R3 ", " TAMIS_R4 ", " TAMIS_R5 ", " TAMIS_R6 ", " TAMIS_R7 ", " TAMIS_R8 ", " TAMIS_R9,
            80, 81, 82, 83, 84, 85,
            TAMIS_D8(0), TAMIS_D8(8), TAMIS_D8(16), TAMIS_D8(24), TAMIS_D8(32), TAMIS_D8(40), TAMIS_D8(48), TAMIS_D8(56), TAMIS_D8(64), TAMIS_D8(72))
TAMIS_WGMMA(true, "f16", 160, TAMIS_R0 ", " TAMIS_R1 ", " TAMIS_R2 ", " TAMIS_R3 ", " TAMIS_R4 ", " TAMIS_R5 ", " TAMIS_R6 ", " TAMIS_R7 ", " TAMIS_R8 ", " TAMIS_R9,
            80, 81, 82, 83, 84, 85,
            TAMIS_D8(0), TAMIS_D8(8), TAMIS_D8(16), TAMIS_D8(24), TAMIS_D8(32), TAMIS_D8(40), TAMIS_D8(48), TAMIS_D8(56), TAMIS_D8(64), TAMIS_D8(72))
TAMIS_WGMMA(false, "bf16", 176, TAMIS_R0 ", " TAMIS_R1 ", " TAMIS_R2 ", " TAMIS_R3 ", " TAMIS_R4 ", " TAMIS_R5 ", " TAMIS_R6 ", " TAMIS_R7 ", " TAMIS_R8 ", " TAMIS_R9 ", " TAMIS_R10,
            88, 89, 90, 91, 92, 93,
            TAMIS_D8(0), TAMIS_D8(8), TAMIS_D8(16), TAMIS_D8(24), TAMIS_D8(32), TAMIS_D8(40), TAMIS_D8(48), TAMIS_D8(56), TAMIS_D8(64), TAMIS_D8(72), TAMIS_D8(80))
TAMIS_WGMMA(true, "f16", 176, TAMIS_R0 ", " TAMIS_R1 ", " TAMIS_R2 ", " TAMIS_R3 ", " TAMIS_R4 ", " TAMIS_R5 ", " TAMIS_R6 ", " TAMIS_R7 ", " TAMIS_R8 ", " TAMIS_R9 ", " TAMIS_R10,
            88, 89, 90, 91, 92, 93,
            TAMIS_D8(0), TAMIS_D8(8), TAMIS_D8(16), TAMIS_D8(24), TAMIS_D8(32), TAMIS_D8(40), TAMIS_D8(48), TAMIS_D8(56), TAMIS_D8(64), TAMIS_D8(72), TAMIS_D8(80))
TAMIS_WGMMA(false, "bf16", 192, TAMIS_R0 ", " TAMIS_R1 ", " TAMIS_R2 ", " TAMIS_R3 ", " TAMIS_R4 ", " TAMIS_R5 ", " TAMIS_R6 ", " TAMIS_R7 ", " TAMIS_R8 ", " TAMIS_R9 ", " TAMIS_R10 ", " TAMIS_R11,
            96, 97, 98, 99, 100, 101,
            TAMIS_D8(0), TAMIS_D8(8), TAMIS_D8(16), TAMIS_D8(24), TAMIS_D8(32), TAMIS_D8(40), TAMIS_D8(48), TAMIS_D8(56), TAMIS_D8(64), TAMIS_D8(72), TAMIS_D8(80), TAMIS_D8(88))
TAMIS_WGMMA(true, "f16", 192, TAMIS_R0 ", " TAMIS_R1 ", " TAMIS_R2 ", " TAMIS_R3 ", " TAMIS_R4 ", " TAMIS_R5 ", " TAMIS_R6 ", " TAMIS_R7 ", " TAMIS_R8 ", " TAMIS_R9 ", " TAMIS_R10 ", " TAMIS_R11,
            96, 97, 98, 99, 100, 101,
            TAMIS_D8(0), TAMIS_D8(8), TAMIS_D8(16), TAMIS_D8(24), TAMIS_D8(32), TAMIS_D8(40), TAMIS_D8(48), TAMIS_D8(56), TAMIS_D8(64), TAMIS_D8(72), TAMIS_D8(80), TAMIS_D8(88))
#undef TAMIS_WGMMA
#undef TAMIS_D8
#undef TAMIS_R0
#undef TAMIS_R1
#undef TAMIS_R2
#undef TAMIS_R3
#undef TAMIS_R4
#undef TAMIS_R5
#undef TAMIS_R6
#undef TAMIS_R7
#undef TAMIS_R8
#undef TAMIS_R9
#undef TAMIS_R10
#undef TAMIS_R11
// clang-format on

}  // namespace tamis::hopper
