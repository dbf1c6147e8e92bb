#include "train/validation.h"

#include <algorithm>
#include <chrono>

namespace tamis {
namespace {

constexpr uint64_t kHeldOut = 0x68656C64ULL;  // the seed of every validation

}  // namespace

ValidationReport validate(KernelContext& context, TrainModel<float>& model,
                          const ModelConfig& config, const float* weights, const Mixture& data,
                          const Stage& stage, int64_t sequences, int64_t measured) {
  const auto start = std::chrono::steady_clock::now();
  Objective o;
  o.attention = stage.sparse() ? TrainAttention::kSparse : TrainAttention::kDense;
  o.topk = stage.topk;
  o.masked = stage.masked;
  o.fp8 = stage.fp8;
  o.train_model = false;
  o.evaluate = true;
  o.measure_topk = stage.sparse() ? stage.topk : config.index_topk;
  const int64_t topk = o.measure_topk < stage.length && measured > 0 ? o.measure_topk : 0;
  ValidationReport report;
  report.topk = topk;
  if (topk > 0) report.health.resize(config.layers.size());
  for (size_t i = 0; i < data.sources().size(); ++i) {
    SourceLoss own{data.sources()[i].name()};
    double right = 0;
    for (int64_t first = 0, last = 0; first < sequences; first = last) {
      last = std::min(sequences, first + stage.micro_batch);
      if (first < measured) last = std::min(last, measured);
      o.measure_topk = first < measured ? topk : 0;
      MicroBatch batch;
      for (int64_t n = first; n < last; ++n) {
        data.append_from(i, kHeldOut, n, stage.length, stage.answers_only(), batch);
      }
      const StepResult r = model.run(context, {weights, nullptr}, batch, o);
      own.loss += r.lm_loss;
      own.targets += r.targets;
      right += static_cast<double>(r.right);
      for (size_t l = 0; l < r.health.size(); ++l) report.health[l].add(r.health[l]);
    }
    const auto targets = static_cast<double>(std::max<int64_t>(1, own.targets));
    own.loss /= targets;
    own.accuracy = right / targets;
    report.sources.push_back(own);
  }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace tamis
