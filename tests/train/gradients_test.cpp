// Whole layers in double against central differences, and float against double.
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "kernels/tolerance.h"
#include "train/cost.h"
#include "train/fp8_layers.h"
#include "train/replicas.h"
#include "train/tiny.h"

namespace tamis {
namespace {

using Doubles = std::vector<double>;

// The scalar whose gradient run() returns.
double loss_of(const StepResult& r, const Objective& o) {
  double loss = o.train_model ? o.lm_scale * r.lm_loss + o.mtp_scale * r.mtp_loss : 0;
  for (const double kl : r.kl) loss += o.kl_scale * kl;
  for (const double b : r.balance) loss += o.balance_scale * b;
  return loss;
}

class Gradients : public testing::Test {
 protected:
  Gradients() : Gradients(tiny_config()) {}
  explicit Gradients(const ModelConfig& config)
      : config_(config), table_(config_), model_(config_, table_) {
    const std::vector<float> values = tiny_values(table_);
    values_.assign(values.begin(), values.end());
  }

  double loss(const Doubles& values, const Objective& o) {
    Doubles unused(values.size());
    return loss_of(model_.run(context_, {values.data(), unused.data()}, batch_, o), o);
  }

  // Every tensor of `group`, along 3 random directions. Central differences with step h are off by
  // h^2 times a third derivative and by 2^-53 / h times the loss; at h = 1e-5 both stay below 1e-8
  // of the terms' size, which |gradient| |direction| and the loss bound.
  void check(const Objective& o, ParameterGroup group) {
    Doubles gradient(values_.size());
    const StepResult r = model_.run(context_, {values_.data(), gradient.data()}, batch_, o);
    const double size = std::abs(loss_of(r, o));
    constexpr double kStep = 1e-5;
    for (const Parameter& p : table_.list()) {
      if (p.group != group) continue;
      for (uint64_t direction = 0; direction < 3; ++direction) {
        Random random(direction, static_cast<uint64_t>(p.offset));
        Doubles up = values_, down = values_;
        double want = 0, norm = 0;
        for (int64_t i = p.offset; i < p.offset + p.size(); ++i) {
          const auto at = static_cast<size_t>(i);
          const double d = 2 * random.unit() - 1;
          up[at] += kStep * d;
          down[at] -= kStep * d;
          want += gradient[at] * d;
          norm += gradient[at] * gradient[at];
        }
        const double got = (loss(up, o) - loss(down, o)) / (2 * kStep);
        ASSERT_NEAR(got, want, 1e-7 * (std::sqrt(norm) + size)) << p.name;
      }
    }
  }

  ModelConfig config_;
  ParameterTable table_;
  KernelContext context_{1, Backend::kReference};
  TrainModel<double> model_;
  Doubles values_;
  MicroBatch batch_ = tiny_batch({9, 1, 6}, 19);
};

TEST_F(Gradients, DenseModelWithBalance) {
  Objective o;
  o.lm_scale = 0.25;
  o.balance_scale = 0.3;
  check(o, ParameterGroup::kModel);
}

TEST_F(Gradients, SparseModel) {
  Objective o;
  o.attention = TrainAttention::kSparse;
  o.topk = 4;
  check(o, ParameterGroup::kModel);
}

TEST_F(Gradients, WarmUpIndexer) {
  Objective o;
  o.train_model = false;
  o.train_indexer = true;
  o.kl_scale = 0.7;
  check(o, ParameterGroup::kIndexer);
}

TEST_F(Gradients, SparseIndexer) {
  Objective o;
  o.attention = TrainAttention::kSparse;
  o.topk = 4;
  o.train_indexer = true;
  o.train_model = false;
  check(o, ParameterGroup::kIndexer);
}

class MtpGradients : public Gradients {
 protected:
  MtpGradients() : Gradients(tiny_config_with_mtp()) {}
};

TEST_F(MtpGradients, Dense) {
  Objective o;
  o.mtp_scale = 0.6;
  o.balance_scale = 0.3;
  check(o, ParameterGroup::kModel);
}

TEST_F(MtpGradients, SparseWithItsIndexer) {
  Objective o;
  o.attention = TrainAttention::kSparse;
  o.topk = 4;
  o.mtp_scale = 0.6;
  check(o, ParameterGroup::kModel);
  o.mtp_scale = 0;
  o.train_model = false;
  o.train_indexer = true;
  check(o, ParameterGroup::kIndexer);
}

TEST_F(MtpGradients, WarmUpOfItsIndexer) {
  Objective o;
  o.train_model = false;
  o.train_indexer = true;
  check(o, ParameterGroup::kIndexer);
  const StepResult r =
      model_.run(context_, {values_.data(), Doubles(values_.size()).data()}, batch_, o);
  ASSERT_EQ(r.kl.size(), 3U);
  EXPECT_EQ(r.kl_rows[2].size(), 9U - 1 + 6 - 1) << "a row for each token with a next one";
}

TEST_F(MtpGradients, PredictsTheTokenAfterTheNext) {
  Objective o;
  o.mtp_scale = 1;
  Doubles gradient(values_.size());
  const StepResult r = model_.run(context_, {values_.data(), gradient.data()}, batch_, o);
  EXPECT_EQ(r.mtp_targets, mtp_targets(batch_));
  // Of 9 tokens the fifth and the last have no target, of 6 likewise: tokens 1.. of each sequence.
  EXPECT_EQ(r.mtp_targets, (8 - 2) + (5 - 2));
  // The first token's embedding is never a next token's, the last target's is not an input.
  MicroBatch other = batch_;
  other.targets[0] = -1;
  Doubles again(values_.size());
  EXPECT_EQ(model_.run(context_, {values_.data(), again.data()}, other, o).mtp_loss, r.mtp_loss)
      << "the next token's target is none of this module's";
}

TEST_F(Gradients, TheLossesTouchDisjointTensors) {
  Objective o;
  o.attention = TrainAttention::kSparse;
  o.topk = 4;
  Doubles lm(values_.size()), both(values_.size());
  model_.run(context_, {values_.data(), lm.data()}, batch_, o);
  o.train_indexer = true;
  model_.run(context_, {values_.data(), both.data()}, batch_, o);
  const ParameterTable::Range model = table_.range(ParameterGroup::kModel);
  for (int64_t i = 0; i < table_.size(); ++i) {
    const auto at = static_cast<size_t>(i);
    if (i < model.end) {
      ASSERT_EQ(lm[at], both[at]) << "the KL reached the model";
    } else {
      ASSERT_EQ(lm[at], 0) << "the language-model loss reached the indexer or a bias";
    }
  }
  for (int64_t i = table_.range(ParameterGroup::kBias).begin; i < table_.size(); ++i) {
    ASSERT_EQ(both[static_cast<size_t>(i)], 0);
  }
}

TEST_F(Gradients, TopkOfTheWholeSequenceIsDense) {
  Objective dense, sparse;
  sparse.attention = TrainAttention::kSparse;
  sparse.topk = 9;
  Doubles a(values_.size()), b(values_.size());
  const double x = loss_of(model_.run(context_, {values_.data(), a.data()}, batch_, dense), dense);
  const double y =
      loss_of(model_.run(context_, {values_.data(), b.data()}, batch_, sparse), sparse);
  EXPECT_NEAR(x, y, 1e-12 * std::abs(x));
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-11) << i;
}

// The two forms of sparse attention are the same function of the weights: sums over a row's keys in
// another order and through other products, within 1e-11 in double.
TEST_F(MtpGradients, MaskedTilesAreGatheredRows) {
  batch_ = tiny_batch({70, 1, 6, 130}, 19);
  for (const int64_t k : {1, 4, 70, 200}) {
    Objective o;
    o.attention = TrainAttention::kSparse;
    o.topk = k;
    o.train_indexer = true;
    o.mtp_scale = 0.6;
    o.balance_scale = 0.3;
    Doubles gathered(values_.size()), masked(values_.size());
    const StepResult a = model_.run(context_, {values_.data(), gathered.data()}, batch_, o);
    o.masked = true;
    const StepResult b = model_.run(context_, {values_.data(), masked.data()}, batch_, o);
    EXPECT_NEAR(loss_of(a, o), loss_of(b, o), 1e-12 * std::abs(loss_of(a, o)));
    for (size_t l = 0; l < a.kl.size(); ++l) EXPECT_NEAR(a.kl[l], b.kl[l], 1e-11 * (1 + a.kl[l]));
    for (const Parameter& p : table_.list()) {
      double norm = 0, error = 0;
      for (int64_t i = p.offset; i < p.offset + p.size(); ++i) {
        const auto at = static_cast<size_t>(i);
        norm += gathered[at] * gathered[at];
        error += (masked[at] - gathered[at]) * (masked[at] - gathered[at]);
      }
      const double size = std::sqrt(norm) + std::abs(loss_of(a, o));
      EXPECT_LE(std::sqrt(error), 1e-11 * size) << p.name << " k " << k;
    }
  }
}

// float with vectors, in blocks, on threads against double in plain loops. A tensor's gradient is a
// sum over tokens of products through 2 layers of about 20 operations each, sums of at most
// `tokens` or 19 terms: within 40 (tokens + 19) roundings of its norm; selections are equal because
// no margin of this batch is smaller than a float can tell.
void expect_float_is_double(const std::vector<int64_t>& lengths, const Objective& o,
                            Backend backend, const ModelConfig& config = tiny_config()) {
  const ParameterTable table(config);
  const std::vector<float> values = tiny_values(table);
  const Doubles exact(values.begin(), values.end());
  const MicroBatch batch = tiny_batch(lengths, config.vocab_size);
  KernelContext reference(1, Backend::kReference), context(2, backend);
  Doubles want(values.size());
  std::vector<float> got(values.size());
  TrainModel<double> slow(config, table);
  TrainModel<float> fast(config, table);
  const StepResult a = slow.run(reference, {exact.data(), want.data()}, batch, o);
  const StepResult b = fast.run(context, {values.data(), got.data()}, batch, o);
  const double unit = 40 * static_cast<double>(batch.tokens() + 19) * kUnitF32;
  EXPECT_NEAR(loss_of(b, o), loss_of(a, o), unit * std::abs(loss_of(a, o)));
  EXPECT_EQ(a.load, b.load);
  for (const Parameter& p : table.list()) {
    double norm = 0, error = 0;
    for (int64_t i = p.offset; i < p.offset + p.size(); ++i) {
      const auto at = static_cast<size_t>(i);
      norm += want[at] * want[at];
      error += (got[at] - want[at]) * (got[at] - want[at]);
    }
    EXPECT_LE(std::sqrt(error), unit * std::sqrt(norm)) << p.name;
  }
}

Objective everything(TrainAttention attention) {
  Objective o;
  o.attention = attention;
  o.topk = 4;
  o.train_indexer = true;
  o.balance_scale = 0.1;
  return o;
}

TEST(FloatGradients, DenseInBlocks) {
  expect_float_is_double({150, 1, 7, 64}, everything(TrainAttention::kDense), Backend::kCpu);
}

TEST(FloatGradients, SparseInBlocks) {
  expect_float_is_double({150, 1, 7, 64}, everything(TrainAttention::kSparse), Backend::kCpu);
}

TEST(FloatGradients, SparseInBlocksOfLatents) {
  Objective o = everything(TrainAttention::kSparse);
  for (const int64_t tokens : {37, 151}) {
    o.latent_tokens = tokens;
    o.recompute = tokens == 37;
    expect_float_is_double({150, 1, 7, 64}, o, Backend::kCpu);
  }
}

// A sequence that ends within a block, one that goes through two or four, several in one. Products
// on CPUs add 256 tokens at a time; the sums over fewer belong to W_kvb alone.
TEST(FloatGradients, BlocksOfLatentsChangeNoBit) {
  const ModelConfig config = tiny_config();
  const ParameterTable table(config);
  const std::vector<float> values = tiny_values(table);
  const MicroBatch batch = tiny_batch({30, 300, 2, 20}, config.vocab_size);
  Objective o = everything(TrainAttention::kSparse);
  KernelContext context(2);
  std::vector<float> whole(values.size());
  TrainModel<float> model(config, table);
  const StepResult want = model.run(context, {values.data(), whole.data()}, batch, o);
  for (const int64_t tokens : {256, 100}) {
    for (const bool recompute : {false, true}) {
      o.latent_tokens = tokens;
      o.recompute = recompute;
      std::vector<float> got(values.size());
      const StepResult r = model.run(context, {values.data(), got.data()}, batch, o);
      EXPECT_EQ(r.lm_loss, want.lm_loss);
      EXPECT_EQ(r.kl, want.kl);
      for (const Parameter& p : table.list()) {
        if (tokens == 100 && p.name.find("kv_b_proj") != std::string::npos) continue;
        EXPECT_TRUE(std::equal(got.begin() + p.offset, got.begin() + p.offset + p.size(),
                               whole.begin() + p.offset))
            << p.name << " in blocks of " << tokens;
      }
    }
  }
}

// One layer more than the two that the bound is for: 40 roundings are enough for three.
TEST(FloatGradients, MtpInBlocks) {
  for (const TrainAttention attention : {TrainAttention::kDense, TrainAttention::kSparse}) {
    Objective o = everything(attention);
    o.mtp_scale = 0.5;
    expect_float_is_double({150, 1, 7, 64}, o, Backend::kCpu, tiny_config_with_mtp());
  }
}

TEST(FloatGradients, ReferenceBackend) {
  expect_float_is_double({40, 3}, everything(TrainAttention::kDense), Backend::kReference);
  expect_float_is_double({40, 3}, everything(TrainAttention::kSparse), Backend::kReference);
}

TEST(FloatGradients, SparseOverMaskedTiles) {
  Objective o = everything(TrainAttention::kSparse);
  o.masked = true;
  for (const Backend backend : {Backend::kReference, Backend::kCpu}) {
    expect_float_is_double({40, 3, 70}, o, backend);
  }
}

TEST(Fp8Layers, AreProductsOfWhatInferenceQuantises) {
  for (const Backend backend : {Backend::kCpu, Backend::kReference}) {
    KernelContext context(2, backend);
    for (const Fp8Problem& problem : fp8_problems()) {
      Fp8Layers layers(context, problem);
      ASSERT_NO_FATAL_FAILURE(layers.expect_are_the_definition());
    }
  }
}

bool is_linear_layer(const std::string& name) {
  for (const char* part : {"_proj.weight", "_proj_with_mqa.weight", "wq_b.weight", "wk.weight"}) {
    if (name.ends_with(part)) return !name.ends_with("weights_proj.weight");
  }
  return false;
}

// A change that rounding takes away leaves the losses as they were; one of any other tensor does
// not.
TEST(Fp8Layers, AreAllLinearLayersOfAModelAndNothingElse) {
  const ModelConfig config = tiny_config_with_mtp();
  const ParameterTable table(config);
  std::vector<float> values = tiny_values(table);
  const MicroBatch batch = tiny_batch({30, 13}, config.vocab_size);
  KernelContext context(1);
  TrainModel<float> model(config, table);
  Objective o = everything(TrainAttention::kDense);
  o.mtp_scale = 0.5;
  o.fp8 = true;
  const auto loss = [&] {
    std::vector<float> unused(values.size());
    return loss_of(model.run(context, {values.data(), unused.data()}, batch, o), o);
  };
  const double before = loss();
  int64_t linear = 0;
  for (const Parameter& p : table.list()) {
    if (p.group == ParameterGroup::kBias) continue;
    const bool rounded = is_linear_layer(p.name) && !p.name.ends_with("eh_proj.weight");
    linear += rounded ? 1 : 0;
    const auto first = values.begin() + p.offset;
    const std::vector<float> kept(first, first + p.size());
    if (rounded) {
      *(first + 3) *= 1 + 0x1p-14F;
    } else {
      for (auto v = first; v != first + p.size(); ++v) *v *= 1.125F;
    }
    EXPECT_EQ(loss() == before, rounded) << p.name;
    std::copy(kept.begin(), kept.end(), first);
  }
  // Five of attention and two of the indexer in each of three layers; three of one dense MLP, and
  // of six experts and a shared one in two layers.
  EXPECT_EQ(linear, 3 * 7 + 3 + 2 * 7 * 3);
}

TEST(FloatGradients, ThreadsChangeNoBit) {
  const ModelConfig config = tiny_config();
  const ParameterTable table(config);
  const std::vector<float> values = tiny_values(table);
  const MicroBatch batch = tiny_batch({90, 33}, config.vocab_size);
  for (const TrainAttention attention : {TrainAttention::kDense, TrainAttention::kSparse}) {
    std::vector<float> one(values.size()), three(values.size());
    KernelContext a(1), b(3);
    TrainModel<float> model(config, table);
    model.run(a, {values.data(), one.data()}, batch, everything(attention));
    model.run(b, {values.data(), three.data()}, batch, everything(attention));
    EXPECT_EQ(one, three);
  }
}

TEST(FloatGradients, RecomputationChangesNoBitAndKeepsLess) {
  const ModelConfig config = tiny_config_with_mtp();
  const ParameterTable table(config);
  const std::vector<float> values = tiny_values(table);
  const MicroBatch batch = tiny_batch({32, 32, 32}, config.vocab_size);
  Stage stage;
  stage.micro_batch = 3;
  stage.length = 32;
  for (const int form : {0, 1, 2}) {  // dense, gathered, masked
    Objective o = everything(form > 0 ? TrainAttention::kSparse : TrainAttention::kDense);
    o.mtp_scale = 0.5;
    o.train_indexer = form > 0;
    o.masked = stage.masked = form == 2;
    stage.topk = form > 0 ? 4 : 0;
    std::vector<float> kept(values.size()), recomputed(values.size());
    KernelContext context(2);
    int64_t bytes[2];
    for (const bool recompute : {false, true}) {
      o.recompute = stage.recompute = recompute;
      TrainModel<float> model(config, table);
      model.run(context, {values.data(), (recompute ? recomputed : kept).data()}, batch, o);
      bytes[recompute ? 1 : 0] = model.activation_bytes();
      EXPECT_EQ(model.activation_bytes(), activation_bytes(config, stage));
      EXPECT_EQ(model.work_bytes(), work_bytes(config, stage)) << form << recompute;
    }
    EXPECT_EQ(kept, recomputed);
    EXPECT_LT(bytes[1], bytes[0]);
  }
}

TEST(FloatGradients, AnEvaluationHasTheLossOfTraining) {
  const ModelConfig config = tiny_config();
  const ParameterTable table(config);
  const std::vector<float> values = tiny_values(table);
  const MicroBatch batch = tiny_batch({90, 33}, config.vocab_size);
  for (const TrainAttention attention : {TrainAttention::kDense, TrainAttention::kSparse}) {
    KernelContext context(2);
    TrainModel<float> model(config, table);
    Objective o;
    o.attention = attention;
    o.topk = 4;
    std::vector<float> gradients(values.size());
    const StepResult trained = model.run(context, {values.data(), gradients.data()}, batch, o);
    o.train_model = false;
    o.evaluate = true;
    o.measure_topk = 4;
    const StepResult r = model.run(context, {values.data(), nullptr}, batch, o);
    EXPECT_EQ(r.lm_loss, trained.lm_loss);
    EXPECT_EQ(r.targets, trained.targets);
    EXPECT_GT(r.right, 0);
    EXPECT_LT(r.right, r.targets);
    ASSERT_EQ(r.health.size(), config.layers.size());
    for (const IndexerHealth& h : r.health) {
      EXPECT_EQ(h.queries, 123);
      EXPECT_EQ(h.selecting, 86 + 29);
      EXPECT_GT(h.recall, 0);
      EXPECT_LT(h.recall, 115);
      EXPECT_LE(h.mass, h.best_mass * (1 + 1e-6));
      EXPECT_LE(h.worst_mass, h.mass * (1 + 1e-6));
    }
    // The KL of the warm-up is over the same rows.
    if (attention == TrainAttention::kDense) {
      Objective warmup;
      warmup.train_model = false;
      warmup.train_indexer = true;
      const StepResult w = model.run(context, {values.data(), gradients.data()}, batch, warmup);
      for (size_t l = 0; l < w.kl.size(); ++l) {
        EXPECT_NEAR(r.health[l].kl, w.kl[l], 1e-4 * w.kl[l]);
      }
    }
    o.train_model = true;
    EXPECT_THROW(model.run(context, {values.data(), gradients.data()}, batch, o), UsageError);
  }
}

// Four heads, and widths that four ranks can share.
ModelConfig divisible_config() {
  ModelConfig config = tiny_config_with_mtp();
  config.num_heads = 4;
  config.intermediate = 16;
  config.moe_intermediate = 8;
  return config;
}

// Ranks that divide the model, each of a data index with a batch of its own, against a rank alone
// with each batch: every tensor's gradient is off by `unit` of its norm at most.
template <typename T>
void expect_divided_is_whole(const ParallelLayout& layout, const Objective& o, double unit) {
  const ModelConfig config = divisible_config();
  const ParameterTable table(config);
  const std::vector<float> floats = tiny_values(table);
  const std::vector<T> values(floats.begin(), floats.end());
  const auto batch = [&](int data) { return tiny_batch({40 + 3 * data, 1, 5}, config.vocab_size); };
  std::vector<std::vector<T>> want;
  std::vector<StepResult> result;
  for (int data = 0; data < layout.data(); ++data) {
    KernelContext context(1);
    want.emplace_back(values.size());
    TrainModel<T> model(config, table);
    result.push_back(model.run(context, {values.data(), want.back().data()}, batch(data), o));
  }
  run_as_threads(layout.ranks, [&](Group& group) {
    KernelContext context(1);
    Replicas ranks(context, config, table, group, layout.expert, layout.tensor);
    const ModelConfig own = config_of_rank(config, layout);
    const ParameterTable& mine = ranks.own_table();
    std::vector<float> part(static_cast<size_t>(mine.size()));
    ranks.take_own(floats.data(), part.data());
    const std::vector<T> weights(part.begin(), part.end());
    std::vector<T> got(static_cast<size_t>(ranks.gradient_size()));
    TrainModel<T> model(own, mine, ranks.expert_group(), ranks.tensor_group());
    const int data = layout.data_index(group.rank()), index = layout.expert_index(group.rank());
    const StepResult r = model.run(context, {weights.data(), got.data()}, batch(data), o);
    const StepResult& alone = result[static_cast<size_t>(data)];
    EXPECT_NEAR(loss_of(r, o), loss_of(alone, o), unit * std::abs(loss_of(alone, o)));
    EXPECT_EQ(r.load, alone.load);
    const auto compare = [&](const Piece& p, int64_t shift, const std::vector<T>& whole) {
      double norm = 0, error = 0;
      for (int64_t i = 0; i < p.rows * p.length; ++i) {
        const double x = got[static_cast<size_t>(p.own + shift + i)];
        const double y =
            whole[static_cast<size_t>(p.whole + i / p.length * p.stride + i % p.length)];
        norm += y * y;
        error += (x - y) * (x - y);
      }
      EXPECT_LE(std::sqrt(error), unit * std::sqrt(norm)) << "place " << p.whole;
    };
    for (const Piece& p : pieces_of_rank(table, mine, layout, group.rank())) {
      compare(p, 0, want[static_cast<size_t>(data)]);
      for (int e = 0; p.expert && e < layout.expert; ++e) {
        if (e == index) continue;
        const int64_t block = e < index ? e : e - 1;
        compare(p, mine.size() + block * mine.experts().size() - mine.experts().begin,
                want[static_cast<size_t>(data - index + e)]);
      }
    }
  });
}

// Products of each batch are those of a rank alone, and rows come back to where they were.
TEST(RankGradients, ExpertParallelismChangesNoBit) {
  for (const TrainAttention attention : {TrainAttention::kDense, TrainAttention::kSparse}) {
    Objective o = everything(attention);
    o.mtp_scale = 0.5;
    expect_divided_is_whole<float>({2, 2, 1}, o, 0);
    expect_divided_is_whole<float>({3, 3, 1}, o, 0);
  }
}

// The same sums in another order: the bound of expect_float_is_double on both sides.
TEST(RankGradients, TensorParallelismAddsInAnotherOrder) {
  const double roundings = 2 * 40 * (49 + 19), unit64 = roundings * 0x1p-53;
  for (const TrainAttention attention : {TrainAttention::kDense, TrainAttention::kSparse}) {
    Objective o = everything(attention);
    o.mtp_scale = 0.5;
    expect_divided_is_whole<double>({4, 1, 4}, o, unit64);
    o.recompute = true;
    expect_divided_is_whole<float>({4, 2, 2}, o, roundings * kUnitF32);
  }
  Objective warmup;
  warmup.train_model = false;
  warmup.train_indexer = true;
  expect_divided_is_whole<double>({2, 1, 2}, warmup, unit64);
}

TEST(FloatGradients, RefusesWhatItCannotDo) {
  const ModelConfig config = tiny_config();
  const ParameterTable table(config);
  std::vector<float> values = tiny_values(table), gradients(values.size());
  KernelContext context(1);
  TrainModel<float> model(config, table);
  MicroBatch batch = tiny_batch({4}, config.vocab_size);
  Objective o;
  o.attention = TrainAttention::kSparse;
  EXPECT_THROW(model.run(context, {values.data(), gradients.data()}, batch, o), UsageError);
  batch.ids[2] = 19;
  EXPECT_THROW(model.run(context, {values.data(), gradients.data()}, batch, {}), InputError);
}

}  // namespace
}  // namespace tamis
