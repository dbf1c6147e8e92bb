// Holds one recorded forward pass against another, layer by layer, with limits that follow from the
// number formats and the shapes. docs/verify.md derives them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "eval/trace.h"
#include "model/config.h"
#include "model/weights.h"

namespace tamis {

// What decides how far two right implementations may lie apart.
struct VerifyLimits {
  double unit = 0x1p-24;   // rounding error of a step: float32's, or bf16's when native
  double longest_sum = 1;  // products in the model's longest dot product
  double lambda = 1;       // how many standard deviations of rounding errors are allowed
  double score_extra = 0;  // relative error of index scores from FP8 keys that round differently
};
VerifyLimits limits_of(const ModelConfig& config, bool native, bool fp8_keys);

// Relative root mean square error that a result may have after `half_blocks` halves of a layer.
double relative_limit(const VerifyLimits& limits, int64_t half_blocks);

// A tensor of one layer (layer -1: of the head).
struct TensorError {
  std::string name;
  int64_t layer = -1;
  int64_t rows = 0, compared = 0;  // rows left out follow an excused decision
  double max_abs = 0, rel_rms = 0;
  double max_abs_limit = 0, rel_rms_limit = 0;
  bool pass() const { return max_abs <= max_abs_limit && rel_rms <= rel_rms_limit; }
};

// Choices of one layer: "selection", "experts"; or "greedy tokens".
struct DecisionError {
  std::string name;
  int64_t layer = -1;
  int64_t rows = 0, equal = 0;
  int64_t excused = 0;  // different, but closer than the error that both may make
  int64_t wrong = 0;
  double overlap = 1;  // share of the chosen entries that both chose
  bool pass() const { return wrong == 0; }
};

struct VerifyComparison {
  std::vector<TensorError> tensors;
  std::vector<DecisionError> decisions;
  std::vector<std::string> failures;  // one line each, in the order of the layers
  bool pass() const { return failures.empty(); }
};

// Rows of a layer's selection: [tokens, topk], ascending, padded with -1.
using Selections = std::map<int64_t, std::vector<int32_t>>;

// `got` was recorded with the selection of `want` forced on it; `chosen` is what it would have
// selected itself. UsageError if the two traces have different shapes.
VerifyComparison compare_traces(const Trace& want, const Trace& got, const Selections& chosen,
                                const ModelConfig& config, const ModelWeights& weights,
                                const VerifyLimits& limits);

}  // namespace tamis
