#include "train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>

#include "base/error.h"
#include "base/json.h"
#include "kernels/memory.h"
#include "train/cost.h"
#include "train/export.h"
#include "train/input_file.h"
#include "train/sparse_form.h"
#include "train/train_log.h"
#include "train/weights_io.h"

namespace tamis {
namespace {

constexpr int64_t kMaxConfig = 1 << 20;
// Steps of a stage before a spike is told, and those that its running mean remembers.
constexpr int64_t kSpikeWarmup = 10, kSpikeMemory = 50;
// A thread draws at least so many.
constexpr int64_t kSequencesOfThread = 4;
constexpr double kNotLearned = std::numeric_limits<double>::quiet_NaN();

double deviation_of(const std::string& config_text) {
  const Json json = parse_json(config_text, "config.json");
  const auto it = json.find("initializer_range");
  return it != json.end() && it->is_number() ? it->get<double>() : 0.02;
}

// The sequences of `more` after those of `batch`.
void append(const MicroBatch& more, MicroBatch& batch) {
  const int64_t before = batch.tokens();
  batch.ids.insert(batch.ids.end(), more.ids.begin(), more.ids.end());
  batch.targets.insert(batch.targets.end(), more.targets.begin(), more.targets.end());
  for (size_t i = 1; i < more.begins.size(); ++i) batch.begins.push_back(before + more.begins[i]);
}

// Of all micro-batches of a step.
struct BatchCounts {
  int64_t tokens = 0, sequences = 0, targets = 0, mtp_targets = 0;
};

BatchCounts counts_of(const std::vector<MicroBatch>& batches) {
  BatchCounts n;
  for (const MicroBatch& batch : batches) {
    n.tokens += batch.tokens();
    n.sequences += batch.sequences();
    for (const int32_t t : batch.targets) n.targets += t >= 0 ? 1 : 0;
    n.mtp_targets += mtp_targets(batch);
  }
  n.targets = std::max<int64_t>(1, n.targets);
  n.mtp_targets = std::max<int64_t>(1, n.mtp_targets);
  return n;
}

Objective objective_of(const Stage& s, const BatchCounts& n) {
  Objective o;
  o.attention = s.sparse() ? TrainAttention::kSparse : TrainAttention::kDense;
  o.topk = s.topk;
  o.masked = s.masked;
  o.train_model = s.trains_model();
  o.train_indexer = s.trains_indexer();
  o.recompute = s.recompute;
  o.fp8 = s.fp8;
  o.lm_scale = 1 / static_cast<double>(n.targets);
  o.mtp_scale = s.mtp_weight / static_cast<double>(n.mtp_targets);
  o.kl_scale = s.kl_weight / static_cast<double>(n.tokens);
  o.balance_scale = s.balance_weight / static_cast<double>(n.sequences);
  return o;
}

// What ranks tell each other of a micro-batch: the losses, balance and KL by layer, load by layer
// and expert.
std::vector<double> numbers_of(const StepResult& r) {
  std::vector<double> out = {r.lm_loss, r.mtp_loss};
  out.insert(out.end(), r.balance.begin(), r.balance.end());
  out.insert(out.end(), r.kl.begin(), r.kl.end());
  out.resize(2 + 2 * r.balance.size());
  for (const std::vector<int64_t>& layer : r.load) {
    for (const int64_t tokens : layer) out.push_back(static_cast<double>(tokens));
  }
  return out;
}

// Of a rank without a micro-batch.
StepResult no_result(const ModelConfig& config, size_t layers) {
  StepResult r;
  r.balance.resize(layers);
  r.load.assign(layers, std::vector<int64_t>(static_cast<size_t>(config.num_experts)));
  return r;
}

std::string checksum_of(std::span<const Mixture> data) {
  std::string text;
  for (const Mixture& m : data) {
    const std::string own = m.checksum();
    if (text.find(own) == std::string::npos) text += (text.empty() ? "" : " ") + own;
  }
  return text;
}

std::string sources_text(const Mixture& data) {
  double total = 0;
  std::string text;
  for (const SourceSpec& s : data.sources()) total += s.weight;
  for (const SourceSpec& s : data.sources()) {
    text +=
        fmt::format("{}{} {:.3g} %", text.empty() ? "" : ", ", s.name(), 100 * s.weight / total);
  }
  return fmt::format("{}; {} tokens in shards", text, data.tokens());
}

// The busiest expert's share of a layer over the mean, the worst layer.
double most_loaded(const std::vector<std::vector<int64_t>>& load) {
  double worst = 0;
  for (const std::vector<int64_t>& layer : load) {
    int64_t total = 0, most = 0;
    for (const int64_t n : layer) {
      total += n;
      most = std::max(most, n);
    }
    if (total > 0) {
      worst = std::max(worst, static_cast<double>(most) * static_cast<double>(layer.size()) /
                                  static_cast<double>(total));
    }
  }
  return worst;
}

}  // namespace

Trainer::Trainer(Recipe recipe, KernelContext& context)
    : Trainer(std::move(recipe), context, single_group(), nullptr) {}

Trainer::Trainer(Recipe recipe, KernelContext& context, Group& group)
    : Trainer(std::move(recipe), context, nullptr, &group) {}

Trainer::Trainer(Recipe recipe, KernelContext& context, std::unique_ptr<Group> own, Group* group)
    : own_group_(std::move(own)), recipe_(std::move(recipe)), context_(context) {
  if (recipe_.precision == "bf16") {
    if (context_.device() == nullptr) {
      throw UsageError("train: precision bf16 needs --backend cuda; a CPU trains in f32 or fp8");
    }
    context_.force("matmul", "cuda_bf16");
  }
  if (recipe_.precision == "fp8") {
    if (recipe_.tensor_parallel > 1) {
      throw UsageError(
          "train: precision fp8 does not divide heads and MLPs, whose blocks would be cut; want "
          "tensor_parallel = 1, or precision f32");
    }
    if (context_.device() != nullptr) context_.force("matmul", "cuda_bf16");
  }
  if (recipe_.mode == "fast") {
    if (context_.device() == nullptr) {
      throw UsageError(
          "train: run.mode fast needs --backend cuda; a CPU trains in the mode deterministic");
    }
    context_.force("scatter_rows", "cuda_atomic");
  }
  const std::string config =
      recipe_.config.empty() ? recipe_.from + "/config.json" : recipe_.config;
  if (!recipe_.from.empty()) {
    want_file(recipe_.from + "/config.json",
              "model.from: want a folder with a model's config.json and weights");
  }
  want_file(config, "model.config: want the config.json of a model, as recipes/xs has one");
  config_text_ = read_text_file(config, kMaxConfig);
  config_ = ModelConfig::parse(config_text_, config);
  set_up_mtp(config);
  base_config_ = config_;
  for (Stage& s : recipe_.stages) {
    s.masked = s.sparse() && config_.has_indexer() &&
               attends_masked(context_, recipe_.sparse_form, config_, s);
    s.fp8 = recipe_.precision == "fp8";
  }
  want_file(recipe_.tokenizer + "/tokenizer.json",
            "model.tokenizer: want a folder with a tokenizer, models/tamis-mini for example");
  table_ = std::make_unique<ParameterTable>(config_);
  for (const Stage& s : recipe_.stages) data_.emplace_back(s.sources, recipe_.tokenizer, shards_);
  if (!recipe_.validation.empty()) {
    held_out_.emplace(recipe_.validation, recipe_.tokenizer, shards_);
  }
  set_up_ranks(group != nullptr ? *group : *own_group_);
  optimizer_ = std::make_unique<Optimizer>(context_, replicas_->own_parts());
  for (const ParameterGroup g : {ParameterGroup::kModel, ParameterGroup::kIndexer}) {
    sums_[static_cast<size_t>(g)].resize(context_, optimizer_->first(g).size());
  }
  std::vector<float> values(static_cast<size_t>(table_->size()));
  draw_values(*table_, recipe_.seed, deviation_of(config_text_), values.data());
  if (!recipe_.from.empty()) {
    const int64_t missing = load_values(Checkpoint::open(recipe_.from), *table_, values.data());
    indexer_at_start_ = config_.has_indexer() && missing == 0;
  }
  place_weights(values.data());
  check();
  position_.recipe = recipe_.text;
  position_.data = checksum_of(data_);
  position_.indexer_trained = indexer_at_start_;
  restore();
  writer_ = std::make_unique<CheckpointWriter>(
      recipe_.out + "/checkpoints", *table_,
      CheckpointRetention{recipe_.keep_last, recipe_.keep_every});
}

void Trainer::set_up_ranks(Group& group) {
  replicas_ = std::make_unique<Replicas>(context_, config_, *table_, group,
                                         static_cast<int>(recipe_.expert_parallel),
                                         static_cast<int>(recipe_.tensor_parallel));
  replicas_->expect_same(
      fmt::format("{}\n{} {}\n{}", recipe_.text, recipe_.expert_parallel, recipe_.tensor_parallel,
                  config_text_),
      "train: ranks have different recipes or model configurations; give all of them the same "
      "files and flags");
  gradients_.resize(context_, replicas_->gradient_size());
  set_config(config_);
  model_ = std::make_unique<TrainModel<float>>(
      own_config_, replicas_->own_table(), replicas_->expert_group(), replicas_->tensor_group());
}

void Trainer::set_config(const ModelConfig& config) {
  config_ = config;
  own_config_ = config_of_rank(config_, replicas_->layout());
}

// The module is trained, and exported, if the stages say so.
void Trainer::set_up_mtp(const std::string& config) {
  bool all = true, any = false;
  for (const Stage& s : recipe_.stages) {
    any = any || s.mtp_weight > 0;
    all = all && (s.mtp_weight > 0 || !s.trains_model());
  }
  if (!any) {
    config_.num_mtp_layers = 0;
    return;
  }
  if (config_.num_mtp_layers == 0) {
    throw InputError(config + ": num_nextn_predict_layers is 0, mtp_weight trains such a module");
  }
  if (!all) {
    throw InputError(
        "mtp_weight: some stages have none, and would leave the module behind the model; give it "
        "to "
        "every stage that trains the model, or to none");
  }
}

void Trainer::restore() {
  if (const auto newest = newest_checkpoint(recipe_.out + "/checkpoints")) {
    const TrainingState found = load_checkpoint(*newest, *table_);
    if (found.position.recipe != position_.recipe) {
      throw InputError(*newest +
                       ": began with another recipe; go on with that one, or choose "
                       "another run.out");
    }
    if (found.position.data != position_.data) {
      throw InputError(*newest + ": began with other data; its text or its tasks have changed");
    }
    take(found);
  } else if (!recipe_.branch_from.empty()) {
    branch();
  }
  for (const double step : replicas_->all({static_cast<double>(position_.step)})) {
    if (step == static_cast<double>(position_.step)) continue;
    throw InputError(recipe_.out +
                     "/checkpoints: another rank finds another checkpoint there; "
                     "want a folder that all of them share");
  }
}

void Trainer::take(const TrainingState& found) {
  position_ = found.position;
  place_weights(found.weights.data());
  for (const ParameterGroup g : {ParameterGroup::kModel, ParameterGroup::kIndexer}) {
    const ParameterTable::Range part = replicas_->part(g, replicas_->rank());
    place(found.first.data() + part.begin, part.size(), optimizer_->first(g));
    place(found.second.data() + part.begin, part.size(), optimizer_->second(g));
  }
  optimizer_->clock(ParameterGroup::kModel) = found.clock_model;
  optimizer_->clock(ParameterGroup::kIndexer) = found.clock_indexer;
}

// From the last stage of the other run that this recipe has too. Data checksums are listed in the
// order of the stages, so the earlier stages' are the beginning of them.
void Trainer::branch() {
  const std::vector<std::string> ends = stage_end_checkpoints(recipe_.branch_from + "/checkpoints");
  for (const std::string& path : ends) {
    TrainingState found = load_checkpoint(path, *table_);
    RunPosition& p = found.position;
    if (p.stage >= static_cast<int64_t>(recipe_.stages.size()) ||
        !recipe_.begins_like(p.recipe, p.stage)) {
      continue;
    }
    if (!p.data.starts_with(checksum_of(std::span(data_).first(static_cast<size_t>(p.stage))))) {
      throw InputError(path + ": began with other data; its text or its tasks have changed");
    }
    p.recipe = position_.recipe;
    p.data = position_.data;
    take(found);
    return;
  }
  throw InputError(recipe_.branch_from +
                   ": run.branch_from: want a run that has ended a stage, with the same model, "
                   "data, seed and stages up to there");
}

Trainer::~Trainer() = default;

void Trainer::place(const float* values, int64_t count, Buffer<float>& to) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  put(context_, to.resize(context_, count), values, bytes);
}

// Of the whole model: what this rank computes with, and what it moves.
void Trainer::place_weights(const float* whole) {
  if (!replicas_->layout().divided()) return place(whole, table_->size(), weights_);
  const int64_t size = replicas_->own_table().size();
  replicas_->take_own(whole, weights_.resize(context_, size));
  for (const ParameterGroup g : {ParameterGroup::kModel, ParameterGroup::kIndexer}) {
    const ParameterTable::Range part = replicas_->part(g, replicas_->rank());
    place(whole + part.begin, part.size(), moved_[static_cast<size_t>(g)]);
  }
}

std::vector<float> Trainer::weights() {
  std::vector<float> values(replicas_->rank() == 0 ? static_cast<size_t>(table_->size()) : 0);
  const auto bytes = [](int64_t n) { return n * static_cast<int64_t>(sizeof(float)); };
  if (!replicas_->layout().divided()) {
    if (!values.empty()) get(context_, values.data(), weights_.data(), bytes(table_->size()));
    return values;
  }
  for (const ParameterGroup g : {ParameterGroup::kModel, ParameterGroup::kIndexer}) {
    replicas_->gather(g, moved_[static_cast<size_t>(g)].data(), values.data());
  }
  if (!values.empty()) {  // every rank has the biases
    const ParameterTable::Range from = replicas_->own_table().range(ParameterGroup::kBias);
    const ParameterTable::Range to = table_->range(ParameterGroup::kBias);
    get(context_, values.data() + to.begin, weights_.data() + from.begin, bytes(to.size()));
  }
  return values;
}

void Trainer::check() const {
  bool indexer_ready = indexer_at_start_;
  for (size_t i = 0; i < recipe_.stages.size(); ++i) {
    const Stage& s = recipe_.stages[i];
    check_stage(static_cast<int64_t>(i), indexer_ready);
    try {
      data_[i].check(recipe_.seed, s.length, s.answers_only());
    } catch (const InputError& e) {
      throw InputError("stage " + s.name + ": " + e.what());
    }
    if (data_[i].vocab_size() > config_.vocab_size) {
      throw InputError(
          fmt::format("{}: {} ids, more than the model's vocab_size {}; take the model's own "
                      "tokenizer, or a configuration with a larger vocabulary",
                      recipe_.tokenizer, data_[i].vocab_size(), config_.vocab_size));
    }
    indexer_ready = indexer_ready || s.kind == StageKind::kWarmup;
  }
  check_validation();
}

// Sources without answers hold nothing that an sft stage could lose.
void Trainer::check_validation() const {
  if (!held_out_) return;
  for (const Stage& s : recipe_.stages) {
    try {
      held_out_->check(0, s.length, s.answers_only());
    } catch (const InputError& e) {
      throw InputError("data.validation for stage " + s.name + ": " + e.what());
    }
  }
}

bool Trainer::validates_now() const {
  const Stage& stage = recipe_.stages[static_cast<size_t>(position_.stage)];
  return held_out_ && (position_.stage_step % recipe_.validate_every == 0 ||
                       position_.stage_step == stage.steps);
}

ModelConfig Trainer::config_of(int64_t stage) const {
  ModelConfig c = base_config_;
  for (int64_t i = 0; i <= stage && i < static_cast<int64_t>(recipe_.stages.size()); ++i) {
    const Stage& s = recipe_.stages[static_cast<size_t>(i)];
    if (s.rope_factor == 0) continue;
    YarnConfig y;
    const int64_t own = c.yarn ? c.yarn->original_max_position : c.max_position;
    y.original_max_position = s.rope_original > 0 ? s.rope_original : own;
    y.factor = s.rope_factor;
    // As DeepSeek-V3 has them: cos and sin stay, the softmax's scale grows.
    y.mscale = y.mscale_all_dim = 1;
    y.has_mscale = true;
    c.yarn = y;
    c.max_position = static_cast<int64_t>(y.factor * static_cast<double>(y.original_max_position));
  }
  return c;
}

void Trainer::check_stage(int64_t index, bool indexer_ready) const {
  const Stage& s = recipe_.stages[static_cast<size_t>(index)];
  const int64_t positions = config_of(index).max_position;
  const std::string where = "stage " + s.name + ": ";
  if (positions > 0 && s.length > positions) {
    throw InputError(
        fmt::format("{}length {} is past the model's max_position_embeddings {}; "
                    "rope_factor extends it",
                    where, s.length, positions));
  }
  const bool needs = s.kind == StageKind::kWarmup || s.sparse();
  if (needs && !config_.has_indexer()) {
    throw InputError(where +
                     "the model has no indexer; give model.config with index_topk, "
                     "index_n_heads and index_head_dim");
  }
  if (s.sparse() && !indexer_ready) {
    throw InputError(where +
                     "the indexer is fresh and would select at random; put a warmup stage "
                     "before it, or start from a model with a trained indexer");
  }
}

std::string Trainer::stage_line(int64_t index) const {
  const Stage& s = recipe_.stages[static_cast<size_t>(index)];
  const bool sparse = s.sparse();
  const ParameterCount n = count_parameters(config_, *table_);
  std::string learns;
  if (s.trains_model()) learns = fmt::format("the model ({} values)", n.model);
  if (s.trains_indexer()) {
    learns += fmt::format("{}the indexer ({} values)", learns.empty() ? "" : " and ", n.indexer);
  }
  const ModelConfig config = config_of(index);
  const std::string rope = config.yarn ? fmt::format("YaRN {:g} x {}, ", config.yarn->factor,
                                                     config.yarn->original_max_position)
                                       : "";
  const std::string kl = !s.trains_indexer() ? "none"
                         : sparse            ? fmt::format("the {} selected", s.topk)
                                             : "every earlier token";
  return fmt::format(
      "stage {}: {}: {}{} attention, KL over {}, trains {}; {} steps of {} x {} tokens; {}", s.name,
      stage_name(s.kind), rope, sparse ? "sparse" : "dense", kl, learns, s.steps, s.batch, s.length,
      recipe_.mode +
          (!sparse    ? ""
           : s.masked ? ", masked tiles"
                      : ", gathered rows") +
          (s.fp8 ? ", linear layers of FP8 factors" : ""));
}

double Trainer::flops() const {
  double total = 0;
  for (const Stage& s : recipe_.stages) {
    total +=
        flops_per_token(config_, *table_, s) * static_cast<double>(s.steps * s.batch * s.length);
  }
  return total;
}

std::string Trainer::plan() const {
  const ParameterCount n = count_parameters(config_, *table_);
  const int ranks = replicas_->size();
  const ParallelLayout& layout = replicas_->layout();
  const double shared =
      (layout.divided() ? 4.0 : 3.0) / ranks * static_cast<double>(table_->size());
  const auto own = static_cast<double>(replicas_->own_table().size() + replicas_->gradient_size());
  std::string out = fmt::format(
      "parameters  {} of the model ({} met by a token), {} of the indexer\n"
      "memory      {:.0f} MiB{}: weights and gradients in float32, and the sum of gradients and "
      "two "
      "moments, which the ranks share\n",
      n.model, n.active, n.indexer, (own + shared) * 4 / (1 << 20),
      ranks > 1 ? fmt::format(" on each of {} ranks", ranks) : "");
  for (size_t i = 0; i < recipe_.stages.size(); ++i) {
    const Stage& s = recipe_.stages[i];
    const double per_token = flops_per_token(config_, *table_, s);
    const auto tokens = static_cast<double>(s.steps * s.batch * s.length);
    out += stage_line(static_cast<int64_t>(i)) +
           fmt::format("\n  {:.1f} MFLOP a token, {:.3g} tokens, {:.3g} FLOP\n", per_token / 1e6,
                       tokens, per_token * tokens) +
           "  data: " + sources_text(data_[i]) + "\n" +
           fmt::format(
               "  {:.0f} MiB of activations and {:.0f} MiB of work space for a micro-batch of "
               "{}, in float32\n",
               static_cast<double>(activation_bytes(own_config_, s)) / (1 << 20),
               static_cast<double>(work_bytes(own_config_, s)) / (1 << 20), s.micro_batch);
  }
  return out;
}

// Sequences `first` of the stage and those after it. They are numbered over the whole run, so two
// recipes that agree up to here see the same.
MicroBatch Trainer::micro_batch(int64_t stage, int64_t first, int64_t count) const {
  const Stage& s = recipe_.stages[static_cast<size_t>(stage)];
  int64_t number = first;
  for (int64_t i = 0; i < stage; ++i) {
    const Stage& earlier = recipe_.stages[static_cast<size_t>(i)];
    number += earlier.steps * earlier.batch;
  }
  const Mixture& data = data_[static_cast<size_t>(stage)];
  const auto draw = [&data, &s, this, number](int64_t begin, int64_t end) {
    MicroBatch batch;
    for (int64_t i = begin; i < end; ++i) {
      data.append(recipe_.seed, number + i, s.length, s.answers_only(), batch);
    }
    return batch;
  };
  // Each sequence depends on its number alone, so threads may share them.
  const int64_t most = std::max<int64_t>(1, count / kSequencesOfThread);
  const int64_t parts = std::min<int64_t>(most, context_.pool().num_threads());
  std::vector<std::future<MicroBatch>> later;
  for (int64_t i = 1; i < parts; ++i) {
    later.push_back(
        std::async(std::launch::async, draw, i * count / parts, (i + 1) * count / parts));
  }
  MicroBatch batch = draw(0, count / parts);
  for (std::future<MicroBatch>& part : later) append(part.get(), batch);
  return batch;
}

std::vector<ParameterGroup> Trainer::trained_groups(const Stage& stage) const {
  std::vector<ParameterGroup> groups;
  if (stage.trains_model()) groups.push_back(ParameterGroup::kModel);
  if (stage.trains_indexer()) groups.push_back(ParameterGroup::kIndexer);
  return groups;
}

std::vector<MicroBatch> Trainer::draw_step(int64_t stage, int64_t stage_step) const {
  const Stage& s = recipe_.stages[static_cast<size_t>(stage)];
  std::vector<MicroBatch> batches;
  for (int64_t first = 0; first < s.batch; first += s.micro_batch) {
    batches.push_back(
        micro_batch(stage, stage_step * s.batch + first, std::min(s.micro_batch, s.batch - first)));
  }
  return batches;
}

// The batches of the step at hand; those of the stage's next step are drawn meanwhile.
std::vector<MicroBatch> Trainer::take_step() {
  const int64_t stage = position_.stage, step = position_.stage_step;
  const bool drawn = ahead_.valid() && ahead_step_ == step;
  std::vector<MicroBatch> batches = drawn ? ahead_.get() : draw_step(stage, step);
  ahead_ = {};
  if (step + 1 < recipe_.stages[static_cast<size_t>(stage)].steps) {
    ahead_step_ = step + 1;
    ahead_ =
        std::async(std::launch::async, [this, stage, step] { return draw_step(stage, step + 1); });
  }
  return batches;
}

void Trainer::clear_values(Buffer<float>& values) {
  zero(context_, values.data(), values.size() * static_cast<int64_t>(sizeof(float)));
}

// The sums of gradients over all micro-batches, in their order, and what each of them lost, as
// numbers [micro-batches][width of numbers_of()]. In each round a rank computes one of them.
std::vector<double> Trainer::compute(const Stage& stage, const std::vector<MicroBatch>& batches,
                                     const Objective& objective) {
  const auto count = static_cast<int64_t>(batches.size());
  const ParallelLayout& layout = replicas_->layout();
  const int at_once = layout.data();
  for (Buffer<float>& sum : sums_) clear_values(sum);
  std::vector<double> numbers;
  for (int64_t first = 0; first < count; first += at_once) {
    int64_t mine = first + layout.data_index(replicas_->rank());
    // A rank whose experts others need computes something, which nobody adds.
    if (layout.expert > 1 && mine >= count) mine = first;
    StepResult r = no_result(config_, table_->layers().size());
    if (mine < count) {
      clear_values(gradients_);
      r = model_->run(context_, {weights_.data(), gradients_.data()},
                      batches[static_cast<size_t>(mine)], objective);
    }
    for (const ParameterGroup g : trained_groups(stage)) {
      replicas_->add_gradients(g, gradients_.data(),
                               static_cast<int>(std::min<int64_t>(at_once, count - first)),
                               sums_[static_cast<size_t>(g)].data());
    }
    const std::vector<double> own = numbers_of(r), round = replicas_->all(own);
    for (int i = 0; i < at_once; ++i) {  // of the first rank of each tensor group
      const auto from = round.begin() + static_cast<int64_t>(own.size()) * i * layout.tensor;
      numbers.insert(numbers.end(), from, from + static_cast<int64_t>(own.size()));
    }
  }
  return numbers;
}

// Losses and gradients of a whole step.
void Trainer::accumulate(const Stage& stage, StepReport& report) {
  const std::vector<MicroBatch> batches = take_step();
  const BatchCounts n = counts_of(batches);
  report.tokens = n.tokens;
  const std::vector<double> numbers = compute(stage, batches, objective_of(stage, n));
  const size_t layers = table_->layers().size();
  const auto experts = static_cast<size_t>(config_.num_experts);
  load_.assign(layers, std::vector<int64_t>(experts));
  if (stage.trains_indexer()) report.kl.assign(layers, 0);
  double loss = 0;
  const double* next = numbers.data();
  for (size_t i = 0; i < batches.size(); ++i) {
    loss += *next++;
    report.mtp_loss += *next++ / static_cast<double>(n.mtp_targets);
    for (size_t l = 0; l < layers; ++l)
      report.balance += *next++ / static_cast<double>(n.sequences);
    for (size_t l = 0; l < layers; ++l, ++next) {
      if (stage.trains_indexer()) report.kl[l] += *next / static_cast<double>(n.tokens);
    }
    for (std::vector<int64_t>& layer : load_) {
      for (int64_t& tokens : layer) tokens += static_cast<int64_t>(*next++);
    }
  }
  report.loss = stage.trains_model() ? loss / static_cast<double>(n.targets) : kNotLearned;
  report.most_loaded = most_loaded(load_);
}

bool Trainer::is_spike(ParameterGroup group, double norm) const {
  const auto g = static_cast<size_t>(group);
  return recipe_.spike_factor > 0 && position_.norm_steps[g] >= kSpikeWarmup &&
         norm > recipe_.spike_factor * position_.norm_mean[g];
}

// The mean of the first steps, then one that forgets them at the same rate. Skipped steps are not
// in it.
void Trainer::remember_norm(ParameterGroup group, double norm) {
  const auto g = static_cast<size_t>(group);
  const int64_t steps = std::min(++position_.norm_steps[g], kSpikeMemory);
  position_.norm_mean[g] += (norm - position_.norm_mean[g]) / static_cast<double>(steps);
}

void Trainer::move(const Stage& stage, StepReport& report) {
  const double factor = stage.schedule.factor(position_.stage_step, stage.steps);
  struct Move {
    ParameterGroup group;
    AdamwSettings settings;
    double *norm, *rate;
  };
  std::vector<Move> moves;
  for (const ParameterGroup g : trained_groups(stage)) {
    if (g == ParameterGroup::kModel) {
      moves.push_back({g, stage.model, &report.norm_model, &report.lr_model});
    } else {
      moves.push_back({g, stage.indexer, &report.norm_indexer, &report.lr_indexer});
    }
  }
  for (Move& m : moves) {
    *m.norm = replicas_->norm(m.group, sums_[static_cast<size_t>(m.group)].data());
    *m.rate = m.settings.learning_rate *= factor;
    report.skipped = report.skipped || !std::isfinite(*m.norm) || is_spike(m.group, *m.norm);
  }
  if (report.skipped) return;  // neither group moves
  for (const Move& m : moves) {
    const ParameterTable::Range part = replicas_->part(m.group, replicas_->rank());
    const float* sum = sums_[static_cast<size_t>(m.group)].data();
    if (replicas_->layout().divided()) {
      float* moved = moved_[static_cast<size_t>(m.group)].data();
      optimizer_->step(context_, m.group, m.settings, *m.norm, moved, sum);
      replicas_->distribute(m.group, moved, weights_.data());
    } else {
      optimizer_->step(context_, m.group, m.settings, *m.norm, weights_.data() + part.begin, sum);
      replicas_->share(m.group, weights_.data());
    }
    remember_norm(m.group, *m.norm);
  }
  if (stage.trains_model()) {
    update_router_biases(context_, replicas_->own_table(), load_, stage.bias_speed,
                         weights_.data());
  }
  position_.indexer_trained = position_.indexer_trained || stage.trains_indexer();
}

StepReport Trainer::step() {
  const auto start = std::chrono::steady_clock::now();
  const Stage& stage = recipe_.stages[static_cast<size_t>(position_.stage)];
  StepReport report;
  report.stage = position_.stage;
  accumulate(stage, report);
  move(stage, report);
  report.step = ++position_.step;
  report.stage_step = ++position_.stage_step;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report.flops = flops_per_token(config_, *table_, stage) * static_cast<double>(report.tokens);
  report.memory = model_->activation_bytes() + model_->work_bytes();
  if (context_.device() != nullptr) report.memory += context_.device()->scratch_bytes();
  return report;
}

// On rank 0; without values on the others.
TrainingState Trainer::state() {
  TrainingState s;
  s.position = position_;
  s.clock_model = optimizer_->clock(ParameterGroup::kModel);
  s.clock_indexer = optimizer_->clock(ParameterGroup::kIndexer);
  s.weights = weights();
  s.first.resize(s.weights.size());
  s.second.resize(s.weights.size());
  for (const ParameterGroup g : {ParameterGroup::kModel, ParameterGroup::kIndexer}) {
    replicas_->gather(g, optimizer_->first(g).data(), s.first.data());
    replicas_->gather(g, optimizer_->second(g).data(), s.second.data());
  }
  return s;
}

void Trainer::save(bool stage_end) {
  position_.stage_end = stage_end;
  if (!recipe_.save) return;
  TrainingState s = state();
  if (replicas_->rank() == 0) writer_->start(std::move(s));
}

// The model folder first: a kill between the two makes it again.
void Trainer::end_stage() {
  const Stage& stage = recipe_.stages[static_cast<size_t>(position_.stage)];
  const std::vector<float> values = recipe_.save ? weights() : std::vector<float>();
  if (recipe_.save && replicas_->rank() == 0) {
    ExportOptions o;
    o.folder = recipe_.out + "/" + stage.name;
    o.config_text = config_text_;
    o.tokenizer = recipe_.tokenizer;
    o.with_indexer = config_.has_indexer() && position_.indexer_trained;
    o.topk = stage.topk;
    o.bf16 = recipe_.export_dtype == "bf16";
    if (std::any_of(recipe_.stages.begin(), recipe_.stages.begin() + position_.stage + 1,
                    [](const Stage& s) { return s.rope_factor > 0; })) {
      o.yarn = config_.yarn;
      o.max_position = config_.max_position;
      o.rope_theta = config_.rope_theta;
    }
    export_model(o, *table_, values);
  }
  model_->release();  // the next stage may keep other arrays, or the same smaller
  ++position_.stage;
  position_.stage_step = 0;
  for (size_t g = 0; g < 2; ++g) {
    position_.norm_mean[g] = 0;
    position_.norm_steps[g] = 0;
  }
  save(true);
}

void Trainer::run(int64_t last_step, FunctionRef<void(const StepReport&)> report) {
  std::optional<TrainLog> log;  // rank 0 alone writes
  if (replicas_->rank() == 0) {
    make_folder(recipe_.out, "run.out: want a folder that can be written");
    log.emplace(recipe_.out, position_.step);
  }
  int64_t skips = 0, saved = position_.step;
  const auto stages = static_cast<int64_t>(recipe_.stages.size());
  while (position_.stage < stages && position_.step < last_step) {
    const Stage& stage = recipe_.stages[static_cast<size_t>(position_.stage)];
    set_config(config_of(position_.stage));
    StepReport r = step();
    // A rank that has the whole model needs no other.
    if (validates_now() && (log || replicas_->layout().divided())) {
      r.validation = validate(context_, *model_, config_, weights_.data(), *held_out_, stage,
                              recipe_.validation_sequences, recipe_.measure_sequences);
    }
    if (log) log->add(r, stage.name);
    report(r);
    skips = r.skipped ? skips + 1 : 0;
    if (skips >= recipe_.max_skips) {
      throw DeviceError(fmt::format(
          "train: {} steps in a row whose gradient was not finite or a spike, up to step "
          "{}; lower the learning rate",
          skips, r.step));
    }
    if (position_.stage_step == stage.steps) {
      end_stage();
      saved = position_.step;
    } else if (position_.step % recipe_.save_every == 0) {
      save(false);
      saved = position_.step;
    }
  }
  if (saved != position_.step) save(false);
  writer_->wait();
  replicas_->barrier();  // no rank leaves before the files are there
}

}  // namespace tamis
