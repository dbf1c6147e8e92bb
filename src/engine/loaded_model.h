// A checkpoint opened for running: configuration, mapped weights, the model over them.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "checkpoint/checkpoint.h"
#include "comm/group.h"
#include "model/transformer.h"
#include "text/tokenizer.h"

namespace tamis {

struct LoadOptions {
  ModelOptions model;
  int64_t index_topk = 0;     // in place of the checkpoint's, if not 0
  bool with_mtp = false;      // load the multi-token-prediction layers too
  bool follow_links = false;  // accept files that are links to outside the folder
  // Given the configuration: ModelOptions::expand_below, in place of what is there.
  std::function<int64_t(const ModelConfig&)> expand_below;
  // Precision::kExact becomes kInt8 if the checkpoint has weights in int8 or int4.
  bool int8_if_quantised = false;
};

class LoadedModel {
 public:
  // InputError for a folder that is not a model; UsageError if the ranks do not divide it, or for
  // Precision::kInt8 without a weight in int8 or int4.
  LoadedModel(const std::string& folder, const LoadOptions& options, std::shared_ptr<Group> group);

  const Checkpoint& checkpoint() const { return checkpoint_; }
  const ModelConfig& config() const { return model_->config(); }
  const ModelWeights& weights() const { return weights_; }
  const Transformer& model() const { return *model_; }
  Group& group() const { return *group_; }

 private:
  std::shared_ptr<Group> group_;
  Checkpoint checkpoint_;
  ModelConfig config_;
  ModelWeights weights_;
  std::unique_ptr<Transformer> model_;
};

}  // namespace tamis
