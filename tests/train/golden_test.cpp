// Losses, gradients, optimiser steps and the router's bias against another implementation's
// numbers: the cases of tests/golden/model and of the folder that TAMIS_FIXTURES names.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "reference/cases.h"
#include "train/model.h"
#include "train/optimizer.h"
#include "train/weights_io.h"

namespace tamis {
namespace {

// docs/numerics.md 7: what two float32 implementations of one model may differ by.
constexpr double kLoss = 1e-5, kGradient = 1e-4, kWeight = 2e-6, kBias = 1e-7;

class Golden : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const auto folder = case_folder(GetParam());
    if (!folder || !std::filesystem::exists(*folder + "/expected/train.safetensors")) {
      GTEST_SKIP() << "no such case: set TAMIS_FIXTURES";
    }
    const Checkpoint checkpoint = Checkpoint::open(*folder);
    config_ = ModelConfig::parse(checkpoint.config_text(), *folder);
    config_.num_mtp_layers = 0;
    table_ = std::make_unique<ParameterTable>(config_);
    values_.resize(static_cast<size_t>(table_->size()));
    load_values(checkpoint, *table_, values_.data());
    model_ = std::make_unique<TrainModel<float>>(config_, *table_);
    expected_ = std::make_unique<SafetensorsFile>(*folder + "/expected/expected.safetensors");
    train_ = std::make_unique<SafetensorsFile>(*folder + "/expected/train.safetensors");
    const Tensor ids = expected_->tensor(*expected_->find("input_ids"));
    for (int64_t i = 0; i < ids.shape.elements(); ++i) {
      batch_.ids.push_back(static_cast<int32_t>(tensor_element(ids, i)));
    }
    batch_.targets.assign(batch_.ids.begin() + 1, batch_.ids.end());
    batch_.targets.push_back(-1);
    batch_.begins = {0, batch_.tokens()};
  }

  bool has(const std::string& name) const { return train_->find(name) != nullptr; }
  Tensor stored(const std::string& name) const { return train_->tensor(*train_->find(name)); }
  double number(const std::string& name) const {
    const Tensor t = stored(name);
    if (t.dtype == DType::kF64) {
      double value;
      std::memcpy(&value, t.data, sizeof(value));
      return value;
    }
    return tensor_element(t, 0);
  }

  Objective language(bool sparse, bool masked = false) const {
    Objective o;
    o.masked = masked;
    o.attention = sparse ? TrainAttention::kSparse : TrainAttention::kDense;
    o.topk = config_.index_topk;
    o.lm_scale = 1.0 / static_cast<double>(batch_.tokens() - 1);
    return o;
  }
  Objective indexer(bool sparse, bool masked = false) const {
    Objective o = language(sparse, masked);
    o.train_model = false;
    o.train_indexer = true;
    return o;
  }

  StepResult run(const Objective& objective) {
    gradients_.assign(values_.size(), 0.0F);
    return model_->run(context_, {values_.data(), gradients_.data()}, batch_, objective);
  }

  void move(Optimizer& optimizer, ParameterGroup group, const AdamwSettings& settings) {
    const ParameterTable::Range r = table_->range(group);
    optimizer.step(context_, group, settings, 1, values_.data() + r.begin,
                   gradients_.data() + r.begin);
  }

  // Every stored tensor PREFIX.<name> against the gradients.
  void check_gradients(const std::string& prefix) {
    int compared = 0;
    for (const Parameter& p : table_->list()) {
      if (!has(prefix + p.name)) continue;
      const Tensor want = stored(prefix + p.name);
      double norm = 0, error = 0;
      for (int64_t i = 0; i < p.size(); ++i) {
        const double w = tensor_element(want, i);
        const double d = gradients_[static_cast<size_t>(p.offset + i)] - w;
        norm += w * w;
        error += d * d;
      }
      EXPECT_LE(std::sqrt(error), kGradient * std::sqrt(norm)) << prefix << p.name;
      ++compared;
    }
    EXPECT_GT(compared, 0) << prefix;
  }

  void check_norm(const std::string& name) {
    double sum = 0;
    for (const float g : gradients_) sum += static_cast<double>(g) * g;
    EXPECT_NEAR(std::sqrt(sum), number(name), kGradient * number(name));
  }

  // Values after a step. The first step is the sign of the gradient wherever it is far above eps,
  // so elements whose gradient is about 0 may go either way.
  void check_values(const std::string& prefix) {
    for (const Parameter& p : table_->list()) {
      if (!has(prefix + p.name)) continue;
      const Tensor want = stored(prefix + p.name);
      for (int64_t i = 0; i < p.size(); ++i) {
        const auto at = static_cast<size_t>(p.offset + i);
        if (std::abs(gradients_[at]) < 1e-6) continue;
        ASSERT_NEAR(values_[at], tensor_element(want, i), kWeight) << prefix << p.name << " " << i;
      }
    }
  }

  ModelConfig config_;
  std::unique_ptr<ParameterTable> table_;
  std::vector<float> values_, gradients_;
  std::unique_ptr<TrainModel<float>> model_;
  std::unique_ptr<SafetensorsFile> expected_, train_;
  KernelContext context_{2};
  MicroBatch batch_;
};

TEST_P(Golden, LanguageModelLossAndGradients) {
  for (const bool masked : {false, true}) {
    if (masked && !config_.has_indexer()) break;
    const StepResult r = run(language(config_.has_indexer(), masked));
    EXPECT_NEAR(r.lm_loss / static_cast<double>(r.targets), number("loss"), kLoss);
    check_gradients("grad.");
    check_norm("grad_norm");
    for (size_t l = 0; l < config_.layers.size(); ++l) {
      const std::string balance = "balance." + std::to_string(l);
      if (!has(balance + ".load")) continue;
      for (size_t e = 0; e < r.load[l].size(); ++e) {
        EXPECT_EQ(r.load[l][e], tensor_element(stored(balance + ".load"), static_cast<int64_t>(e)));
      }
      update_router_biases(context_, *table_, r.load, 0.001, values_.data());
      for (int64_t e = 0; e < config_.num_experts; ++e) {
        const int64_t at = table_->layers()[l].router_bias + e;
        EXPECT_NEAR(values_[static_cast<size_t>(at)],
                    tensor_element(stored(balance + ".bias_after"), e), kBias);
      }
      update_router_biases(context_, *table_, r.load, -0.001, values_.data());
    }
  }
}

TEST_P(Golden, DenseLossAndGradients) {
  if (!has("dense.loss")) return;
  const StepResult r = run(language(false));
  EXPECT_NEAR(r.lm_loss / static_cast<double>(r.targets), number("dense.loss"), kLoss);
  check_gradients("dense.grad.");
  check_norm("dense.grad_norm");
}

TEST_P(Golden, MultiTokenPrediction) {
  if (!has("mtp.loss")) return;
  const Checkpoint checkpoint = Checkpoint::open(*case_folder(GetParam()));
  const ModelConfig config = ModelConfig::parse(checkpoint.config_text(), "case");
  const ParameterTable table(config);
  std::vector<float> values(static_cast<size_t>(table.size())), gradients(values.size());
  load_values(checkpoint, table, values.data());
  Objective o = language(config.has_indexer());
  o.mtp_scale = 1.0 / static_cast<double>(batch_.tokens() - 2);
  TrainModel<float> model(config, table);
  const StepResult r = model.run(context_, {values.data(), gradients.data()}, batch_, o);
  EXPECT_EQ(r.mtp_targets, batch_.tokens() - 2);
  EXPECT_NEAR(r.mtp_loss * o.mtp_scale, number("mtp.loss"), kLoss);
  int compared = 0;
  for (const Parameter& p : table.list()) {
    if (!has("mtp.grad." + p.name)) continue;
    const Tensor want = stored("mtp.grad." + p.name);
    double error = 0, norm = 0;
    for (int64_t i = 0; i < p.size(); ++i) {
      const double w = tensor_element(want, i);
      const double e = gradients[static_cast<size_t>(p.offset + i)] - w;
      error += e * e;
      norm += w * w;
    }
    EXPECT_LE(std::sqrt(error), kGradient * std::sqrt(norm)) << p.name;
    ++compared;
  }
  EXPECT_EQ(compared, 4);
}

TEST_P(Golden, TwoStepsOfAdamw) {
  Optimizer optimizer(context_, *table_);
  AdamwSettings settings;
  settings.learning_rate = 1e-3;
  settings.clip = 0;
  const Objective o = language(config_.has_indexer());
  for (int step = 0; step < 2; ++step) {
    const StepResult r = run(o);
    EXPECT_NEAR(r.lm_loss / static_cast<double>(r.targets),
                number("adamw.loss" + std::to_string(step)), kLoss);
    move(optimizer, ParameterGroup::kModel, settings);
    if (step == 0) check_values("adamw.step1.");
  }
  // The second step divides by moments of two gradients: elements that went the other way in the
  // first are not comparable, the loss is.
  const StepResult r = run(o);
  EXPECT_NEAR(r.lm_loss / static_cast<double>(r.targets), number("adamw.loss2"), kLoss);
}

TEST_P(Golden, IndexerStages) {
  if (!has("dsa.stage1.loss")) return;
  for (const int form : {0, 1, 2}) {  // dense, gathered, masked
    const bool sparse = form > 0;
    const std::string stage = sparse ? "dsa.stage2." : "dsa.stage1.";
    const StepResult r = run(indexer(sparse, form == 2));
    double total = 0;
    for (size_t l = 0; l < r.kl.size(); ++l) {
      const double want = number(stage + "loss." + std::to_string(l));
      EXPECT_NEAR(r.kl[l], want, kLoss * want);
      total += r.kl[l];
      const Tensor rows = stored(stage + "kl." + std::to_string(l));
      for (int64_t t = 0; t < batch_.tokens(); ++t) {
        const double row = tensor_element(rows, t);
        ASSERT_NEAR(r.kl_rows[l][static_cast<size_t>(t)], row, kLoss * (1 + row)) << t;
      }
    }
    EXPECT_NEAR(total, number(stage + "loss"), kLoss * total);
    check_gradients(stage + "grad.");
  }
}

TEST_P(Golden, OneStepOfTheWarmUp) {
  if (!has("dsa.stage1.loss")) return;
  Optimizer optimizer(context_, *table_);
  AdamwSettings settings;
  settings.learning_rate = 1e-3;
  settings.clip = 0;
  run(indexer(false));
  move(optimizer, ParameterGroup::kIndexer, settings);
  check_values("dsa.stage1.adamw.step1.");
}

INSTANTIATE_TEST_SUITE_P(Cases, Golden,
                         testing::Values("a_fp32_dense", "b_fp32_sparse_yarn", "e_v3_dense"));

}  // namespace
}  // namespace tamis
