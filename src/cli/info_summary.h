// What `tamis info` says of a checkpoint, gathered from its headers and its config.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/config.h"

namespace tamis::cli {

struct DtypeTotal {
  int64_t tensors = 0;
  int64_t elements = 0;
  int64_t bytes = 0;
};

// A multi-token-prediction layer: read from the checkpoint, not run by the main model.
struct MtpLayer {
  std::string name;  // "model.layers.61"
  int64_t tensors = 0;
  int64_t parameters = 0;
};

struct CheckpointSummary {
  int64_t dense_layers = 0, moe_layers = 0;
  int64_t no_indexer = 0, own_indexer = 0, shared_indexer = 0;
  // Of the main model, scales not counted. Active: embedding, head and all but the experts that a
  // token is not sent to, as DeepSeek counts.
  int64_t parameters = 0, active_parameters = 0;
  std::map<std::string, DtypeTotal> dtypes;
  std::vector<MtpLayer> mtp_layers;
  std::string quantization;  // "fp8 (e4m3, blocks of 128x128, scales F32)"; empty if none
  bool has_tokenizer = false;
  std::string chat_format;  // empty if none is recognised
  bool has_manifest = false;
};

CheckpointSummary summarize(const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace tamis::cli
