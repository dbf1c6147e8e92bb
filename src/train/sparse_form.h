// The two forms of sparse attention in training, equal but for rounding:
//
//   gather  absorbed: a token's queries meet the latents of the k rows that it selected, which are
//           gathered, and their gradients are scattered back. k (2 kv_lora + rope) multiply-adds a
//           head and token, for at least the 16 heads of a tile of the tensor cores.
//   mask    expanded: the tiles of dense attention and of the warm-up loss over keys of every head,
//           with a bit for each token and key; tiles that no token of a tile selected are left out.
//           length / 2 (nope + rope + v) multiply-adds a head and token, none of them gathered.
#pragma once

#include <string>

#include "kernels/context.h"
#include "model/config.h"
#include "train/recipe.h"

namespace tamis {

// Whether the mask takes less time on a GPU, by shapes alone: its work is less than a measured
// multiple of that of gathering.
bool masked_is_faster(const ModelConfig& config, const Stage& s);

// Whether the sparse stage `s` runs over masked tiles. `wanted` is run.sparse_form: "gather",
// "mask", or "auto": on CPUs gather, on a GPU the faster one. InputError if "mask" is wanted of a
// GPU whose tiles do not take the model's heads.
bool attends_masked(const KernelContext& context, const std::string& wanted,
                    const ModelConfig& config, const Stage& s);

}  // namespace tamis
