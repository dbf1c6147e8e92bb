// Whole models on a GPU: losses and gradients against double in plain loops, and the same bits in
// every run.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/explain.h"
#include "kernels/tolerance.h"
#include "kernels/train_ops.h"
#include "support/cuda_device.h"
#include "train/fp8_layers.h"
#include "train/optimizer.h"
#include "train/tiny.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

double loss_of(const StepResult& r, const Objective& o) {
  double loss = o.train_model ? o.lm_scale * r.lm_loss + o.mtp_scale * r.mtp_loss : 0;
  for (const double kl : r.kl) loss += o.kl_scale * kl;
  for (const double b : r.balance) loss += o.balance_scale * b;
  return loss;
}

Objective objective(TrainAttention attention, bool indexer) {
  Objective o;
  o.attention = attention;
  o.topk = 4;
  o.train_indexer = indexer;
  o.lm_scale = 0.01;
  o.kl_scale = 0.02;
  o.balance_scale = 0.1;
  return o;
}

class TrainCuda : public CudaTest {
 protected:
  struct Run {
    StepResult result;
    Floats gradients;
  };

  Run run(TrainModel<float>& model, const Floats& values, const MicroBatch& batch,
          const Objective& o) {
    Device<float> w(context(), values), g(context(), Floats(values.size()));
    Run r;
    r.result = model.run(context(), {w.data(), g.data()}, batch, o);
    r.gradients = g.read();
    return r;
  }

  // The bound of tests/train/gradients_test.cpp: a tensor's gradient is a sum over tokens of
  // products through layers of about 20 operations each, sums of at most `tokens` or 19 terms.
  // Those of attention may be off by 3.01 * 2^-18 of their factors (mla_flash.cu,
  // train_products.h).
  void expect_is_double(const ModelConfig& config, const std::vector<int64_t>& lengths,
                        const Objective& o) {
    expect_is_double(config, lengths, o, tiny_values(ParameterTable(config)), 3.01 * 0x1p-18);
  }

  // factor: what rounding the factors of a product changes of it.
  void expect_is_double(const ModelConfig& config, const std::vector<int64_t>& lengths,
                        const Objective& o, const Floats& values, double factor) {
    const ParameterTable table(config);
    const Doubles exact(values.begin(), values.end());
    const MicroBatch batch = tiny_batch(lengths, config.vocab_size);
    Doubles want(values.size());
    TrainModel<double> slow(config, table);
    TrainModel<float> fast(config, table);
    Objective gathered = o;
    gathered.masked = false;
    const StepResult a = slow.run(reference(), {exact.data(), want.data()}, batch, gathered);
    const Run b = run(fast, values, batch, o);
    const double unit = 40 * (static_cast<double>(batch.tokens() + 19) * kUnitF32 + factor);
    EXPECT_NEAR(loss_of(b.result, o), loss_of(a, o), unit * std::abs(loss_of(a, o)));
    EXPECT_EQ(b.result.load, a.load);
    EXPECT_EQ(b.result.targets, a.targets);
    for (const Parameter& p : table.list()) {
      double norm = 0, error = 0;
      for (int64_t i = p.offset; i < p.offset + p.size(); ++i) {
        const auto at = static_cast<size_t>(i);
        norm += want[at] * want[at];
        error += (b.gradients[at] - want[at]) * (b.gradients[at] - want[at]);
      }
      EXPECT_LE(std::sqrt(error), unit * std::sqrt(norm)) << p.name;
    }
    const Run again = run(fast, values, batch, o);
    EXPECT_EQ(std::memcmp(again.gradients.data(), b.gradients.data(), 4 * values.size()), 0);
    EXPECT_EQ(loss_of(again.result, o), loss_of(b.result, o));
  }
};

TEST_F(TrainCuda, DenseIsTheDoubleModel) {
  for (const auto& lengths : {std::vector<int64_t>{150, 1, 7, 64}, {33}, {2, 2, 2}}) {
    expect_is_double(tiny_config(), lengths, objective(TrainAttention::kDense, false));
  }
}

TEST_F(TrainCuda, WarmUpIsTheDoubleModel) {
  Objective o = objective(TrainAttention::kDense, true);
  o.train_model = false;
  expect_is_double(tiny_config(), {150, 1, 7, 64}, o);
}

TEST_F(TrainCuda, SparseIsTheDoubleModel) {
  expect_is_double(tiny_config(), {150, 1, 7, 64}, objective(TrainAttention::kSparse, true));
}

TEST_F(TrainCuda, SparseInBlocksOfLatentsIsTheDoubleModel) {
  Objective o = objective(TrainAttention::kSparse, true);
  for (const int64_t tokens : {37, 151}) {
    o.latent_tokens = tokens;
    expect_is_double(tiny_config(), {150, 1, 7, 64}, o);
  }
}

// Sums over the tokens of a block are those of W_kvb's gradient alone.
TEST_F(TrainCuda, BlocksOfLatentsChangeNoOtherBit) {
  const ModelConfig config = tiny_config();
  const ParameterTable table(config);
  const Floats values = tiny_values(table);
  const MicroBatch batch = tiny_batch({150, 1, 7, 64}, config.vocab_size);
  Objective o = objective(TrainAttention::kSparse, true);
  TrainModel<float> model(config, table);
  const Run whole = run(model, values, batch, o);
  for (const int64_t tokens : {0, 60}) {
    for (const bool recompute : {false, true}) {
      o.latent_tokens = tokens;
      o.recompute = recompute;
      const Run got = run(model, values, batch, o);
      EXPECT_EQ(loss_of(got.result, o), loss_of(whole.result, o));
      for (const Parameter& p : table.list()) {
        if (tokens > 0 && p.name.find("kv_b_proj") != std::string::npos) continue;
        EXPECT_TRUE(std::equal(got.gradients.begin() + p.offset,
                               got.gradients.begin() + p.offset + p.size(),
                               whole.gradients.begin() + p.offset))
            << p.name << " in blocks of " << tokens;
      }
    }
  }
}

// The double model gathers.
TEST_F(TrainCuda, MaskedSparseIsTheDoubleModel) {
  const ModelConfig config = tiny_config_with_mtp();
  Objective o = objective(TrainAttention::kSparse, true);
  o.masked = true;
  o.mtp_scale = 0.02;
  for (const int64_t k : {4, 100}) {
    o.topk = k;
    expect_is_double(config, {150, 1, 7, 64}, o);
  }
}

TEST_F(TrainCuda, MtpIsTheDoubleModel) {
  Objective o = objective(TrainAttention::kDense, false);
  o.mtp_scale = 0.02;
  expect_is_double(tiny_config_with_mtp(), {150, 1, 7, 64}, o);
}

// Wide enough that every product but the router's rounds its factors, most of which are kept in
// bf16; every expert is chosen, so no rounding can change a choice.
TEST_F(TrainCuda, Bf16IsTheDoubleModelButForItsFactors) {
  std::string json = tiny_config_json();
  const auto set = [&json](const std::string& key, int value) {
    const std::string name = "\"" + key + "\": ";
    const size_t at = json.find(name) + name.size();
    json.replace(at, json.find_first_of(",}", at) - at, std::to_string(value));
  };
  for (const char* key : {"hidden_size", "q_lora_rank", "kv_lora_rank", "moe_intermediate_size"}) {
    set(key, 64);
  }
  for (const char* key : {"n_routed_experts", "num_experts_per_tok"}) set(key, 4);
  for (const char* key : {"num_attention_heads", "num_key_value_heads"}) set(key, 2);
  for (const char* key : {"n_group", "topk_group"}) set(key, 1);
  set("qk_nope_head_dim", 32);
  set("qk_rope_head_dim", 8);
  set("index_head_dim", 8);
  set("v_head_dim", 32);
  set("intermediate_size", 72);
  set("vocab_size", 80);
  const ModelConfig config = ModelConfig::parse(json, "wide");
  const ParameterTable table(config);
  Floats values(static_cast<size_t>(table.size()));
  draw_values(table, 7, 0.1, values.data());
  context().force("matmul", "cuda_bf16");
  ASSERT_TRUE(reads_bf16(context(), 64, {64, 72, 80}));
  // Two factors, each off by half a unit.
  expect_is_double(config, {150, 1, 7, 64}, objective(TrainAttention::kDense, false), values,
                   kUnitBf16);
  const std::vector<std::string> ran = explain(context());
  EXPECT_NE(std::find(ran.begin(), ran.end(), "mla_backward_bf16: cuda_flash"), ran.end());
  const MicroBatch batch = tiny_batch({150, 1, 7, 64}, config.vocab_size);
  Objective o = objective(TrainAttention::kDense, false);
  TrainModel<float> model(config, table);
  const Floats kept = run(model, values, batch, o).gradients;
  o.recompute = true;
  EXPECT_EQ(run(model, values, batch, o).gradients, kept);
}

// The products alone: which block a value falls into is decided before them, on the same values.
TEST_F(TrainCuda, Fp8LayersAreProductsOfWhatInferenceQuantises) {
  context().force("fp8_products", "cuda");
  for (const char* products : {"cuda", "cuda_bf16"}) {
    context().force("matmul", products);
    for (const Fp8Problem& problem : fp8_problems()) {
      Fp8Layers layers(context(), problem);
      ASSERT_NO_FATAL_FAILURE(layers.expect_are_the_definition()) << products;
    }
  }
}

TEST_F(TrainCuda, Fp8TensorCoresMultiplyWhatInferenceQuantises) {
  context().force("fp8_products", "cuda_sm90");
  ASSERT_TRUE(fp8_products_run(context())) << "wants Hopper";
  for (const char* products : {"cuda", "cuda_bf16"}) {  // factors given in float32 or bf16
    context().force("matmul", products);
    std::vector<Fp8Problem> problems = fp8_problems();
    problems.push_back({1500, 130, 72, {}, 0x1p-30F});  // in pieces
    problems.push_back({2600, 72, 130, {0, 1100, 1101, 2600}});
    std::vector<int64_t> many = {0};
    for (int64_t g = 0; g < 40; ++g) many.push_back(many.back() + g % 5 * 29);
    problems.push_back({many.back(), 64, 136, many});
    for (const Fp8Problem& problem : problems) {
      Fp8Layers layers(context(), problem, true);
      ASSERT_NO_FATAL_FAILURE(layers.expect_are_the_definition()) << products;
    }
  }
}

TEST_F(TrainCuda, Fp8GivesTheSameBitsInEveryRun) {
  const ModelConfig config = tiny_config_with_mtp();
  const ParameterTable table(config);
  Floats values(static_cast<size_t>(table.size()));
  draw_values(table, 7, 0.1, values.data());
  const MicroBatch batch = tiny_batch({150, 1, 7, 64}, config.vocab_size);
  context().force("matmul", "cuda_bf16");
  for (const char* products : {"cuda", "cuda_sm90"}) {
    context().force("fp8_products", products);
    for (const TrainAttention attention : {TrainAttention::kDense, TrainAttention::kSparse}) {
      if (skip_case()) continue;  // a sanitizer sees the first and the last
      Objective o = objective(attention, true);
      o.mtp_scale = 0.02;
      TrainModel<float> model(config, table);
      const double exact = loss_of(run(model, values, batch, o).result, o);
      o.fp8 = true;
      const Run a = run(model, values, batch, o);
      EXPECT_NE(loss_of(a.result, o), exact);
      EXPECT_NEAR(loss_of(a.result, o), exact, 0.02 * exact);
      o.recompute = true;
      const Run b = run(model, values, batch, o);
      EXPECT_EQ(loss_of(b.result, o), loss_of(a.result, o));
      EXPECT_EQ(b.gradients, a.gradients);
    }
  }
}

// Losses of an sft stage: most tokens have no target, one whole sequence has none.
TEST_F(TrainCuda, AnswersAloneAreLearnedAsOnTheCpu) {
  const ModelConfig config = tiny_config();
  const ParameterTable table(config);
  const Floats values = tiny_values(table);
  MicroBatch batch = tiny_batch({150, 33, 64, 40}, config.vocab_size);
  for (int64_t t = 0; t < batch.tokens(); ++t) {
    const bool answer = (t % 50 > 43 && t < 150) || t > 240;
    if (!answer) batch.targets[static_cast<size_t>(t)] = -1;
  }
  for (const bool sparse : {false, true}) {
    const Objective o =
        objective(sparse ? TrainAttention::kSparse : TrainAttention::kDense, sparse);
    TrainModel<float> on_gpu(config, table);
    TrainModel<double> on_cpu(config, table);
    const Doubles exact(values.begin(), values.end());
    Doubles want(values.size());
    const StepResult a = on_cpu.run(reference(), {exact.data(), want.data()}, batch, o);
    const Run b = run(on_gpu, values, batch, o);
    const double unit = 40 * (static_cast<double>(batch.tokens() + 19) * kUnitF32 + 3.01 * 0x1p-18);
    EXPECT_GT(a.targets, 20);
    EXPECT_EQ(b.result.targets, a.targets);
    EXPECT_NEAR(b.result.lm_loss, a.lm_loss, unit * a.lm_loss);
    double norm = 0, error = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      norm += want[i] * want[i];
      error += (b.gradients[i] - want[i]) * (b.gradients[i] - want[i]);
    }
    EXPECT_LE(std::sqrt(error), unit * std::sqrt(norm));
  }
}

TEST_F(TrainCuda, RecomputationChangesNoBit) {
  const ModelConfig config = tiny_config();
  const ParameterTable table(config);
  const Floats values = tiny_values(table);
  const MicroBatch batch = tiny_batch({32, 90}, config.vocab_size);
  for (const bool masked : {false, true}) {
    Objective o = objective(masked ? TrainAttention::kSparse : TrainAttention::kDense, masked);
    o.masked = masked;
    TrainModel<float> model(config, table);
    const Run kept = run(model, values, batch, o);
    o.recompute = true;
    EXPECT_EQ(run(model, values, batch, o).gradients, kept.gradients);
  }
}

TEST_F(TrainCuda, AnEvaluationHasTheLossOfTraining) {
  const ModelConfig config = tiny_config();
  const ParameterTable table(config);
  const Floats values = tiny_values(table);
  const MicroBatch batch = tiny_batch({90, 33}, config.vocab_size);
  TrainModel<float> model(config, table), on_cpu(config, table);
  Objective o = objective(TrainAttention::kDense, false);
  const StepResult trained = run(model, values, batch, o).result;
  o.train_model = false;
  o.evaluate = true;
  o.measure_topk = 4;
  const StepResult r = run(model, values, batch, o).result;
  KernelContext cpu(1);
  const StepResult want = on_cpu.run(cpu, {values.data(), nullptr}, batch, o);
  EXPECT_EQ(r.lm_loss, trained.lm_loss);
  EXPECT_EQ(r.targets, want.targets);
  EXPECT_EQ(r.right, want.right);
  ASSERT_EQ(r.health.size(), want.health.size());
  for (size_t l = 0; l < r.health.size(); ++l) {
    EXPECT_EQ(r.health[l].selecting, want.health[l].selecting);
    EXPECT_NEAR(r.health[l].kl, want.health[l].kl, 1e-4 * want.health[l].kl);
  }
}

// The step of the optimiser, the norm of its gradient and the router's rule.
TEST_F(TrainCuda, AStepMovesAsOnTheCpu) {
  const ModelConfig config = tiny_config();
  const ParameterTable table(config);
  const Floats start = tiny_values(table);
  Floats gradients(start.size());
  for (size_t i = 0; i < gradients.size(); ++i) gradients[i] = std::sin(static_cast<float>(i));
  KernelContext cpu(1);
  Optimizer on_cpu(cpu, table), on_gpu(context(), table);
  Device<float> w(context(), start), g(context(), gradients);
  Floats want = start;
  AdamwSettings settings;
  settings.learning_rate = 0.01;
  for (int step = 0; step < 3; ++step) {
    const double a = sum_of_squares(cpu, gradients.data(), table.size());
    const double b = sum_of_squares(context(), g.data(), table.size());
    EXPECT_NEAR(b, a, static_cast<double>(table.size()) * 0x1p-52 * a);
    on_cpu.step(cpu, ParameterGroup::kModel, settings, 2.5, want.data(), gradients.data());
    on_gpu.step(context(), ParameterGroup::kModel, settings, 2.5, w.data(), g.data());
    const std::vector<std::vector<int64_t>> load = {{}, {1, 2, 3, 2, 2, 2}};
    update_router_biases(cpu, table, load, 0.5, want.data());
    update_router_biases(context(), table, load, 0.5, w.data());
  }
  EXPECT_EQ(w.read(), want) << "the same operations in the same order, without fused ones";
}

}  // namespace
}  // namespace tamis
