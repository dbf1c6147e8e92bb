// What a model loses on held-out sequences, and what its indexer's choice covers of dense
// attention. The sequences are the same at every call and in every run: they depend on their source
// and the stage's length alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/mixture.h"
#include "train/model.h"
#include "train/recipe.h"

namespace tamis {

struct SourceLoss {
  std::string source;
  double loss = 0;      // nats a target
  double accuracy = 0;  // share of the targets that are the most likely token
  int64_t targets = 0;
};

struct ValidationReport {
  std::vector<SourceLoss> sources;
  int64_t topk = 0;                   // that the indexer is measured with
  std::vector<IndexerHealth> health;  // [layers]; empty without an indexer
  double seconds = 0;
};

// `sequences` of each source, with the attention of the stage. The indexer is measured on the first
// `measured` of them, with stage.topk, else with config.index_topk, where the length exceeds it.
ValidationReport validate(KernelContext& context, TrainModel<float>& model,
                          const ModelConfig& config, const float* weights, const Mixture& data,
                          const Stage& stage, int64_t sequences, int64_t measured);

}  // namespace tamis
