// What a model needs on this machine and how fast it can be, from its shapes: nothing is run but
// a probe of the machine's limits, unless the caller measures beside it.
//
// "Peak" is VmHWM of the process: its largest resident set. Pages of mapped weights count from
// their first touch, although the kernel may take them back.
#pragma once

#include <cstdint>

#include "engine/loaded_model.h"
#include "engine/paged_cache.h"
#include "eval/throughput.h"

namespace tamis {

struct ProcessMemory {
  int64_t peak = 0, anonymous = 0, file = 0;  // bytes: VmHWM, RssAnon, RssFile
};
// Zeros where /proc does not say.
ProcessMemory process_memory();
int64_t available_memory();  // MemAvailable of the machine

struct PlanOptions {
  SelectionPolicy policy;
  CacheOptions cache;  // pages is ignored
  Precision precision = Precision::kExact;
  int64_t context = 0;  // prompt and answer of one sequence
  int64_t batch = 1;    // sequences at the same time
  int64_t chunk = 512;  // prompt tokens of one forward pass
  int threads = 1;
  ProcessMemory before_load;  // of this process, before it loaded the model
};

// Bytes.
struct MemoryPlan {
  int64_t program = 0;           // code, tokenizer, tables: measured in this process
  int64_t weights = 0;           // mapped matrices that the context's tokens touch
  int64_t embedding = 0;         // rows of the embedding, as the kernel maps them: 64 KiB at a time
  int64_t latent_per_token = 0;  // cache, all layers
  int64_t index_per_token = 0;
  int64_t cache = 0;        // whole pages of the context, all sequences
  int64_t activations = 0;  // of one chunk
  int64_t scratch = 0;      // of the kernels; an estimate
  int64_t peak = 0;
  int64_t largest_context = 0;  // that fits into the memory available now
};
MemoryPlan plan_memory(const LoadedModel& model, const PlanOptions& options);

// Bytes on a device. The scratch of the kernels is not in it: it follows the largest call of each.
struct DevicePlan {
  int64_t weights = 0;
  int64_t cache = 0;            // whole pages of the context, all sequences
  int64_t activations = 0;      // of one chunk; buffers there are a quarter larger than asked for
  int64_t largest_context = 0;  // that fits into `available`
};
DevicePlan plan_device_memory(const LoadedModel& model, const PlanOptions& options,
                              int64_t available);

// Bytes of model/activations.h for one pass of `tokens` tokens that ends at `context`.
int64_t activation_bytes(const ModelConfig& config, const PlanOptions& options, int ranks,
                         int64_t tokens);

// What our own products reach here: a matrix from memory times one vector, and one from cache
// times many. On a device a copy and mma.sync.
struct MachineLimits {
  double read_bytes_per_second = 0, flops = 0;
};
MachineLimits probe_machine(KernelContext& context);

// Seconds of a decode step, at best: weights, then attention, each as long as its bytes or its
// products take, whichever is more.
double predicted_step(const LoadedModel& model, const PlanOptions& options,
                      const MachineLimits& limits, AttentionKind attention, int64_t depth);

// The smallest depth from which sparse decoding is predicted faster than dense; -1 if none is
// within the model's positions.
int64_t crossover_depth(const LoadedModel& model, const PlanOptions& options,
                        const MachineLimits& limits);

}  // namespace tamis
