// Trained values from and to a Hugging Face folder, by the ParameterTable.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "train/parameters.h"

namespace tamis {

// Fills values [table.size()]. InputError for a missing tensor, another shape, or a quantised one
// (`tamis convert --to bf16` makes a folder that can be trained). Returns how many tensors of the
// indexer the folder lacks: 0, or all of them for a dense model, which then start fresh.
int64_t load_values(const Checkpoint& checkpoint, const ParameterTable& table, float* values);

// Draws fresh values for every tensor, or for those of one group: normal with `deviation`, ones,
// zeros. A tensor's values depend on the seed and its name alone.
void draw_values(const ParameterTable& table, uint64_t seed, double deviation, float* values);
void draw_values(const ParameterTable& table, ParameterGroup group, uint64_t seed, double deviation,
                 float* values);

}  // namespace tamis
