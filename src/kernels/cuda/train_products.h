// Batched matrix products of the training operations on CUDA, on the tensor cores of sm_80 and
// later, with operands whose rows may be gathered.
//
//   c[z][m, n] (+)= sum over terms, outer, k of a[z][m, k] b[z][k, n]
//
// Every float32 factor is taken apart into two bf16 values, x = high + low + r, |r| <= 2^-18 |x|,
// and a product is high high + high low + low high, summed in float32: off by at most 3.01 * 2^-18
// |a| |b|. Forced to "cuda_bf16", the operation "train_products" rounds factors to bf16 and leaves
// the low parts out: off by at most 2.01 * 2^-9 |a| |b|. A value's sum runs over terms, outer and k
// in order in steps of 16, so its bits depend on the shapes alone.
#pragma once

#include <cstdint>

#include "kernels/context.h"

namespace tamis {

// Rows of contiguous floats. With `rows`, row i of batch z is row rows[z * rows_z + i] of x, and a
// row of zeros where that is negative.
struct ProductOperand {
  const float* x = nullptr;
  int64_t row = 0;           // floats from one row to the next
  int64_t z = 0, outer = 0;  // from one batch, and one outer step, to the next
  const int32_t* rows = nullptr;
  int64_t rows_z = 0;
  // Rows from `split` on are those of another array, from its row 0 on; without one they are zeros.
  const float* then = nullptr;
  int64_t split = INT64_MAX;
};

struct ProductTerm {
  ProductOperand a, b;
  int64_t k = 0, outer = 1;
};

// What causal attention leaves out. Row 0 of a block of queries is query `offset`; query i sees
// keys 0 .. i.
enum class Causal : uint8_t {
  kNone,
  kScores,   // c [queries, keys]: tiles that no query sees are not written
  kKeys,     // k are keys, m queries: a is 0 where the key is not seen
  kQueries,  // k are queries, m keys: a is 0 where the key is not seen
};

struct TrainProducts {
  ProductTerm term[2];
  int terms = 1;
  int64_t m = 0, n = 0, batch = 1;
  float* c = nullptr;
  int64_t c_row = 0, c_z = 0;
  bool add = false;
  Causal causal = Causal::kNone;
  int64_t offset = 0;
};

// How the rows of the operands lie: of a by m or by k, of b by n or by k.
void products_m_n(KernelContext& context, const TrainProducts& p);
void products_m_k(KernelContext& context, const TrainProducts& p);
void products_k_k(KernelContext& context, const TrainProducts& p);

}  // namespace tamis
