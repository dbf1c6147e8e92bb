// Losses and gradients of one sequence in a safetensors file: `tamis trace --grad`. docs/trace.md
// has the keys.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kernels/context.h"

namespace tamis {

enum class GradientKind : uint8_t {
  kLanguage,  // "lm": mean cross entropy of the next tokens, attention as the model has it
  kDense,     // "dense": the same with every earlier token attended to
  kStage1,    // "stage1": the indexer's warm-up loss, summed over layers and tokens
  kStage2,    // "stage2": its loss over the selected set, likewise
};
// UsageError for any other name.
GradientKind gradient_from_name(const std::string& name);

// InputError if the model cannot be trained or has no indexer where one is needed, or for fewer
// than 2 ids.
void write_gradients(KernelContext& context, const std::string& model, GradientKind kind,
                     std::span<const int32_t> ids, const std::string& out);

}  // namespace tamis
