// Records everything inside a forward pass, under the keys of docs/trace.md, so that another
// implementation can be held against it tensor by tensor.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "engine/loaded_model.h"
#include "engine/paged_cache.h"
#include "model/observer.h"
#include "tensor/tensor.h"

namespace tamis {

// A recorded tensor: floats or integers.
struct TraceTensor {
  std::vector<int64_t> shape;
  std::vector<float> floats;
  std::vector<int64_t> ints;  // used if is_int
  bool is_int = false;
};

using Trace = std::map<std::string, TraceTensor>;

struct TraceOptions {
  SelectionPolicy policy;
  int64_t greedy = 0;  // greedy continuation of this many tokens; end of text is not obeyed
  bool mtp = false;    // also the multi-token-prediction layer
  int64_t chunk = 0;   // prefill in chunks of this many tokens; 0: in one
  KvFormat latent_format = KvFormat::kF32;
  KvFormat index_format = KvFormat::kF32;
  // In place of the policy's, if set: verify forces another run's selection.
  const Selector* selector = nullptr;
  // Moves every cached entry by one position before the greedy steps: a negative control.
  bool shift_cache = false;
};

// InputError for ids outside the vocabulary, an empty list or a result that is not finite.
Trace record_trace(KernelContext& context, const LoadedModel& model,
                   const std::vector<int32_t>& ids, const TraceOptions& options);

// Writes a trace as safetensors: floats F32, "*.ids" I64 (greedy) or I32, selections I32.
void write_trace(const Trace& trace, const std::string& path);

}  // namespace tamis
