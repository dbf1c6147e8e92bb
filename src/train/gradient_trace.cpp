#include "train/gradient_trace.h"

#include <cmath>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "train/model.h"
#include "train/weights_io.h"

namespace tamis {
namespace {

std::string prefix_of(GradientKind kind) {
  switch (kind) {
    case GradientKind::kLanguage:
      return "";
    case GradientKind::kDense:
      return "dense.";
    case GradientKind::kStage1:
      return "dsa.stage1.";
    case GradientKind::kStage2:
      return "dsa.stage2.";
  }
  return "";
}

bool of_indexer(GradientKind kind) {
  return kind == GradientKind::kStage1 || kind == GradientKind::kStage2;
}

Objective objective_of(GradientKind kind, const ModelConfig& config, int64_t tokens) {
  const bool sparse =
      kind == GradientKind::kStage2 || (kind == GradientKind::kLanguage && config.has_indexer());
  Objective o;
  o.attention = sparse ? TrainAttention::kSparse : TrainAttention::kDense;
  o.topk = config.index_topk;
  o.train_model = !of_indexer(kind);
  o.train_indexer = of_indexer(kind);
  o.lm_scale = 1 / static_cast<double>(tokens - 1);
  return o;
}

// Tensors with storage of their own, in the order in which they were added.
class Writer {
 public:
  template <typename T>
  void add(const std::string& name, DType dtype, Shape shape, const T* values) {
    specs_.push_back({name, dtype, shape});
    const auto* bytes = reinterpret_cast<const std::byte*>(values);
    data_.insert(data_.end(), bytes, bytes + shape.elements() * static_cast<int64_t>(sizeof(T)));
  }
  void write(const std::string& path) const {
    SafetensorsWriter writer(path, specs_, {{"format", "pt"}});
    writer.append(data_);
    writer.commit();
  }

 private:
  std::vector<TensorSpec> specs_;
  std::vector<std::byte> data_;
};

MicroBatch batch_of(std::span<const int32_t> ids) {
  MicroBatch b;
  b.ids.assign(ids.begin(), ids.end());
  b.targets.assign(ids.begin() + 1, ids.end());
  b.targets.push_back(-1);
  b.begins = {0, b.tokens()};
  return b;
}

void add_losses(Writer& out, const std::string& prefix, const StepResult& r) {
  if (r.kl.empty()) {
    const auto loss = static_cast<float>(r.lm_loss / static_cast<double>(r.targets));
    return out.add(prefix + "loss", DType::kF32, {1}, &loss);
  }
  double total = 0;
  for (const double kl : r.kl) total += kl;
  out.add(prefix + "loss", DType::kF64, {1}, &total);
  for (size_t l = 0; l < r.kl.size(); ++l) {
    out.add(prefix + "loss." + std::to_string(l), DType::kF64, {1}, &r.kl[l]);
  }
  for (size_t l = 0; l < r.kl.size(); ++l) {
    const std::vector<float> rows(r.kl_rows[l].begin(), r.kl_rows[l].end());
    out.add(prefix + "kl." + std::to_string(l), DType::kF32, {static_cast<int64_t>(rows.size())},
            rows.data());
  }
}

}  // namespace

GradientKind gradient_from_name(const std::string& name) {
  if (name == "lm") return GradientKind::kLanguage;
  if (name == "dense") return GradientKind::kDense;
  if (name == "stage1") return GradientKind::kStage1;
  if (name == "stage2") return GradientKind::kStage2;
  throw UsageError("--grad: got " + printable(name) + ", want lm, dense, stage1 or stage2");
}

void write_gradients(KernelContext& context, const std::string& model, GradientKind kind,
                     std::span<const int32_t> ids, const std::string& out) {
  if (context.backend() == Backend::kCuda) throw UsageError("--grad: runs on a CPU alone");
  if (ids.size() < 2) throw InputError("--grad: want at least 2 ids");
  const Checkpoint checkpoint = Checkpoint::open(model);
  ModelConfig config = ModelConfig::parse(checkpoint.config_text(), model + "/config.json");
  if (of_indexer(kind) && !config.has_indexer()) {
    throw InputError(model + ": the model has no indexer");
  }
  const ParameterTable table(config);
  std::vector<float> weights(static_cast<size_t>(table.size())), gradients(weights.size());
  if (load_values(checkpoint, table, weights.data()) != 0) {
    throw InputError(model + ": the tensors of the indexer are missing");
  }
  const MicroBatch batch = batch_of(ids);
  TrainModel<float> train(config, table);
  const StepResult r = train.run(context, {weights.data(), gradients.data()}, batch,
                                 objective_of(kind, config, batch.tokens()));
  Writer writer;
  const std::string prefix = prefix_of(kind);
  add_losses(writer, prefix, r);
  const ParameterGroup group = of_indexer(kind) ? ParameterGroup::kIndexer : ParameterGroup::kModel;
  double square = 0;
  for (const Parameter& p : table.list()) {
    if (p.group != group) continue;
    writer.add(prefix + "grad." + p.name, DType::kF32, p.shape, gradients.data() + p.offset);
    for (int64_t i = p.offset; i < p.offset + p.size(); ++i) {
      const double g = gradients[static_cast<size_t>(i)];
      square += g * g;
    }
  }
  const auto norm = static_cast<float>(std::sqrt(square));
  writer.add(prefix + "grad_norm", DType::kF32, {1}, &norm);
  writer.write(out);
}

}  // namespace tamis
