// mla_sparse with products of integers (MlaSparseArgs::int16), for models whose activations are
// rounded to 8 bits anyway: twice the products an instruction of float32, and finer than 8 bits.
//
//   softmax_scale q and c_kv, k_pe:   x ~ s_x n_x,   s_x = max|x| / L,   n_x = x (L / max|x|),
//                                     nearest even; one s_x for each row of q_latent, q_pe, c_kv
//                                     and k_pe, L = int16_limit(length of the row)
//   score[s] = s_q s_k (n_q . n_k) of the latents + the same of q_pe and k_pe
//   for each group of 256 entries:    w[s] = p[s] s_k[s] becomes s_w n_w[s], L = kWeightLimit
//   out      = out alpha + s_w sum_s n_w[s] n_k[s]
//
// Sums of integers fit into 32 bits and are exact, so their order is free. A row with a NaN or an
// infinity has s_x = NaN; one whose largest magnitude is below 2^-100 counts as zeros.
//
// A token whose list has fewer than kFewestInt16Entries is attended to in float32: making integers
// of so few entries costs more than their products save.
#pragma once

#include <cmath>
#include <cstdint>

namespace tamis {

constexpr int64_t kFewestInt16Entries = 128;
constexpr int64_t kInt16Group = 256;  // entries that share s_w, counted from the list's start
constexpr int kLatentLimit = 2047;    // 12 bits with the sign
// 256 products of a weight and a latent, and those of a row of up to 512, stay below 2^31.
constexpr int kWeightLimit = 4095;
static_assert(kInt16Group * kWeightLimit * kLatentLimit < (int64_t{1} << 31));
static_assert(int64_t{512} * kLatentLimit * kLatentLimit < (int64_t{1} << 31));
constexpr float kSmallestInt16Row = 0x1p-100F;

// The largest integer of rows of n values: n times its square fits into 31 bits.
inline int int16_limit(int64_t n) {
  if (n <= 512) return kLatentLimit;
  return static_cast<int>(std::sqrt(2147483647.0 / static_cast<double>(n)));
}

// x [n] to out [n]; returns s_x.
float quantize_int16(const float* x, int64_t n, int limit, int16_t* out);

}  // namespace tamis
