// How fast a model reads prompts and decodes at a given depth of context, on this machine.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/loaded_model.h"
#include "engine/paged_cache.h"

namespace tamis {

struct ThroughputOptions {
  SelectionPolicy policy;
  CacheOptions cache;   // pages is ignored
  int64_t chunk = 512;  // prompt tokens of one forward pass
  int64_t batch = 1;    // sequences decoded together
  int64_t tokens = 32;  // decode steps timed
  int64_t repeat = 3;   // the median is reported
  uint64_t seed = 1;
  int64_t expand_below = -1;  // of a prompt's attention; -1: the model's
};

struct Throughput {
  int64_t depth = 0, tokens = 0, batch = 1;
  double seconds = 0;  // median
  double tokens_per_second = 0;
  double gigabytes_per_second = 0;  // weights and cache entries that the work must read
  double gigaflops = 0;             // of matrix products, counted from the shapes
};

// Prompts of `tokens` random ids, from an empty cache.
Throughput measure_prefill(KernelContext& context, const LoadedModel& model, int64_t tokens,
                           const ThroughputOptions& options);

// Seconds of one chunk of a prompt behind `depth` tokens of random cache entries; the median.
double measure_chunk(KernelContext& context, const LoadedModel& model, int64_t depth,
                     const ThroughputOptions& options);

// The first position from which a chunk in the absorbed form is faster than one in the expanded
// form, to a sixteenth of it; the model's longest context if none is.
int64_t measure_crossover(KernelContext& context, const LoadedModel& model,
                          const ThroughputOptions& options);

// Decode steps after `depth` tokens of context. The context's cache entries are random numbers of
// the size that norms give: they take the same time as real ones and need no hour-long prefill.
Throughput measure_decode(KernelContext& context, const LoadedModel& model, int64_t depth,
                          const ThroughputOptions& options);

// Bytes that one decode step of `batch` sequences must read at this depth (weights once, with the
// experts a step of that size is expected to touch), and its floating-point operations.
struct StepCost {
  double weight_bytes = 0, cache_bytes = 0, flops = 0;
};
StepCost decode_cost(const ModelConfig& config, const ModelWeights& weights,
                     const SelectionPolicy& policy, const CacheOptions& cache, int64_t depth,
                     int64_t batch);

}  // namespace tamis
