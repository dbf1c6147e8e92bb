#include "engine/loaded_model.h"

#include "base/error.h"

namespace tamis {
namespace {

ModelConfig configure(const Checkpoint& checkpoint, const LoadOptions& options) {
  ModelConfig c =
      ModelConfig::parse(checkpoint.config_text(), checkpoint.folder() + "/config.json");
  if (options.index_topk > 0) c.index_topk = options.index_topk;
  if (options.with_mtp && c.num_mtp_layers == 0) {
    throw InputError(checkpoint.folder() + ": has no multi-token-prediction layer");
  }
  return c;
}

ModelOptions choose(const LoadOptions& options, const ModelConfig& config,
                    const ModelWeights& weights, const std::string& folder) {
  ModelOptions model = options.model;
  if (options.expand_below) model.expand_below = options.expand_below(config);
  const bool quantised = weights.has_integers();
  if (model.precision == Precision::kInt8 && !quantised) {
    throw UsageError("precision int8: " + folder +
                     " has no weights in int8 or int4 (tamis convert --to int8 makes them)");
  }
  if (options.int8_if_quantised && quantised && model.precision == Precision::kExact) {
    model.precision = Precision::kInt8;
  }
  return model;
}

}  // namespace

LoadedModel::LoadedModel(const std::string& folder, const LoadOptions& options,
                         std::shared_ptr<Group> group)
    : group_(std::move(group)),
      checkpoint_(Checkpoint::open(folder, {options.follow_links})),
      config_(configure(checkpoint_, options)),
      weights_(ModelWeights::load(checkpoint_, config_, *group_, options.with_mtp)),
      model_(std::make_unique<Transformer>(config_, weights_, *group_,
                                           choose(options, config_, weights_, folder))) {}

}  // namespace tamis
