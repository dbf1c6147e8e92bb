// What ranks that compute a layer together send each other (parallel.h). Internal to train/; host
// memory.
#pragma once

#include <cstdint>

#include "train/pass.h"

namespace tamis {

// Collective over the experts' group: tells the ranks how many rows of layer l each expert gets,
// from expert_offsets of the state, and fills its `sources`.
template <typename T>
void exchange_counts(Pass<T>& p, int64_t l);
// Rows that this rank's experts work on.
template <typename T>
int64_t received_rows(const Pass<T>& p, int64_t l);
// Collective: rows [tokens * experts_per_token, width], by expert, to the ranks of their experts;
// received [received_rows, width].
template <typename T>
void send_to_experts(Pass<T>& p, int64_t l, const T* rows, int64_t width, T* received);
// Collective: the way back.
template <typename T>
void return_from_experts(Pass<T>& p, int64_t l, const T* received, int64_t width, T* rows);

// values [n] = the sum over the tensor group, ((r0 + r1) + r2) + ..; as they are without one.
template <typename T>
void add_over_tensor_group(const Pass<T>& p, T* values, int64_t n);
// all [rows, ranks * width] = the columns [rows, width] of each rank of the tensor group.
template <typename T>
void gather_columns(const Pass<T>& p, const T* own, int64_t rows, int64_t width, Buffer<T>& all);

}  // namespace tamis
