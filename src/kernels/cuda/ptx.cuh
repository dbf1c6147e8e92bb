// One instruction a function, by its PTX name. What each needs at least is in the comment.
#pragma once

#include <cstdint>

namespace tamis::ptx {

// sm_80: 16 bytes from global to shared memory, past L1, without waiting. With `valid` false
// nothing is read and 16 zero bytes are written; `from` must still be an address.
__device__ inline void cp_async_16(void* shared, const void* from, bool valid = true) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

// sm_80: 4 bytes from global to shared memory, without waiting.
__device__ inline void cp_async_4(void* shared, const void* from) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(to), "l"(from) : "memory");
}

// Brings the line of `from` to L1, without waiting.
// From any address, also that of a kernel's parameter: the compiler does not turn it into reads of
// constant memory, which a warp's lanes would make one after the other.
__device__ inline uint4 load_generic(const uint4* from) {
  uint4 v;
  asm("ld.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(from));
  return v;
}

__device__ inline void prefetch_l1(const void* from) {
  asm volatile("prefetch.global.L1 [%0];\n" ::"l"(from));
}

// sm_80: ends this thread's group of copies.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// sm_80: waits until at most kPending of this thread's groups are unfinished.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// sm_75: four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l
// / 8.
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

// The same, each matrix transposed.
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

// sm_80: the larger; NaN if either is NaN.
__device__ inline float max_nan(float a, float b) {
  float m;
  asm("max.NaN.f32 %0, %1, %2;\n" : "=f"(m) : "f"(a), "f"(b));
  return m;
}

// 2^x, 2 ulp; 0 below about -126, NaN stays.
__device__ inline float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// Two floats rounded to bf16, `low` in the low half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// Two floats rounded to f16, `low` in the low half.
__device__ inline uint32_t pack_f16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

}  // namespace tamis::ptx
