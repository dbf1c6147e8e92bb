// What the tensor-core kernels of mla_sparse share with their launcher, mla_sparse_mma.cu.
#pragma once

#include <cstdint>

#include "kernels/mla_sparse/mla_sparse.h"

struct CUstream_st;

namespace tamis::mla_mma {

constexpr int kLatent = 512, kRope = 64;
constexpr int kThreads = 256;
constexpr int kKeys = 64;  // entries of a list in one step

// A row's softmax, or that of a part of its list: in powers of two, of scores times log2(e).
struct Softmax {
  float max, sum;
};

// Where blocks leave sums of values.
struct Parts {
  // chunks 0: [block][heads of a block][512], what a block keeps of its list's earlier chunks.
  // Else: [tokens, chunks, heads, 512], a chunk's sums.
  float* sums = nullptr;
  Softmax* stats = nullptr;  // [tokens, chunks, heads]
  int chunks = 0;            // 0: one block goes through a whole list
};

struct Launch {
  MlaSparseArgs args;
  Parts parts;
  int heads = 0;        // of a block: 16 or 64
  bool staged = false;  // the next step's rows are copied while this one's are multiplied
  int64_t items = 0;    // (token, heads of a block[, chunk])
  int blocks = 0;
  CUstream_st* stream = nullptr;
};

// Shared memory of a block in bytes.
int64_t shared_bytes_bf16(int heads, bool staged);
int64_t shared_bytes_fp8(int heads, bool staged);
void launch_bf16(const Launch& l);
void launch_fp8(const Launch& l);

}  // namespace tamis::mla_mma
