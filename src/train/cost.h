// How much work a step is: multiply-adds counted as two, forward and backward, with what sparse
// attention and the indexer really do.
#pragma once

#include <cstdint>

#include "train/parameters.h"
#include "train/recipe.h"

namespace tamis {

// Trained values of each kind, and those that one token meets.
struct ParameterCount {
  int64_t model = 0, indexer = 0, active = 0;
};
ParameterCount count_parameters(const ModelConfig& config, const ParameterTable& table);

// Floating-point operations of one token in a sequence of stage.length:
//   products   2 per value that the token meets forward, twice that backward
//   attention  2 (nope + rope + v) heads per pair (expanded), (2 kv_lora + rope) absorbed; backward
//              2.5 times; length / 2 pairs a token, or min(topk, ..) of them: the pairs that a
//              masked tile multiplies besides are not counted
//   indexer    2 (dim + 1) heads per pair, over all pairs to select; 3 times over the pairs of its
//   KL
double flops_per_token(const ModelConfig& config, const ParameterTable& table, const Stage& stage);

// Bytes that a pass over a micro-batch of the stage keeps for its backward pass; TrainModel says
// the same after one.
int64_t activation_bytes(const ModelConfig& config, const Stage& stage);
// Bytes that its layers take turns with, likewise; float32, without the scratch memory of
// operations.
int64_t work_bytes(const ModelConfig& config, const Stage& stage);

}  // namespace tamis
