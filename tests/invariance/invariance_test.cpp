// A token's logits are the same bits alone or in a batch, in one chunk or many, cold or from a
// cached prefix, on any number of threads.
#include <gtest/gtest.h>

#include <cstring>
#include <optional>

#include "invariance/runner.h"
#include "support/fewer_cases.h"
#include "support/quantised_checkpoint.h"

namespace tamis {
namespace {

bool same_bits(const Logits& a, const Logits& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Setup {
  const char* name;
  const char* folder;
  int64_t tokens;  // more than top-k, so that the selection matters
  KvFormat format;
  NumberFormat to = NumberFormat::kKeep;  // kInt8, kInt4: quantised, and run in that precision
};

class Invariance : public ::testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    std::string folder = std::string(TAMIS_SOURCE_DIR) + "/" + GetParam().folder;
    LoadOptions options;
    if (GetParam().to != NumberFormat::kKeep) {
      quantised_.emplace(GetParam().folder, GetParam().to);
      folder = quantised_->path();
      if (test_backend() != Backend::kCuda) options.model.precision = Precision::kInt8;
    }
    model_ = std::make_unique<LoadedModel>(folder, options, single_group());
    ids_ = random_ids(GetParam().tokens, model_->config().vocab_size, 7);
    Runner runner = make(2);
    whole_ = runner.run(ids_, GetParam().tokens);
  }
  Runner make(int threads) { return Runner(*model_, threads, test_backend(), GetParam().format); }
  size_t vocab() const { return static_cast<size_t>(model_->config().vocab_size); }

  std::optional<QuantisedCheckpoint> quantised_;
  std::unique_ptr<LoadedModel> model_;
  std::vector<int32_t> ids_;
  Logits whole_;
};

TEST_P(Invariance, Chunks) {
  Runner runner = make(2);
  for (const int64_t chunk : {1, 7, 64, 1000}) {
    EXPECT_TRUE(same_bits(runner.run(ids_, chunk), whole_)) << "chunks of " << chunk;
  }
}

// Blocks of a GPU finish in another order every time; nothing may come of it.
TEST_P(Invariance, Repeats) {
  Runner runner = make(2);
  const int repeats = test_backend() == Backend::kCuda ? 20 : 2;
  for (int i = 0; i < repeats; ++i) {
    EXPECT_TRUE(same_bits(runner.run(ids_, i % 2 == 0 ? GetParam().tokens : 33), whole_)) << i;
  }
}

TEST_P(Invariance, Threads) {
  for (const int threads : {1, 3}) {
    Runner runner = make(threads);
    EXPECT_TRUE(same_bits(runner.run(ids_, 50), whole_)) << threads << " threads";
  }
}

TEST_P(Invariance, CachedPrefixCutAnywhere) {
  Runner runner = make(2);
  CachedSequence full;
  runner.run(ids_, GetParam().tokens, full);
  std::mt19937 rng(3);
  std::vector<int64_t> cuts{1, 63, 64, 65, GetParam().tokens - 1};
  for (int i = 0; i < fewer(8, 1); ++i) {
    cuts.push_back(1 + static_cast<int64_t>(rng() % static_cast<uint64_t>(GetParam().tokens - 1)));
  }
  for (const int64_t cut : cuts) {
    CachedSequence fork;
    ASSERT_TRUE(runner.cache().fork(full, cut, fork));
    const Logits rest = runner.step({{&fork, {ids_.begin() + cut, ids_.end()}}});
    const Logits want(whole_.begin() + cut * static_cast<int64_t>(vocab()), whole_.end());
    EXPECT_TRUE(same_bits(rest, want)) << "cut at " << cut;
    runner.cache().release(fork);
  }
  // The shared pages were only read: the sequence they came from goes on unchanged.
  runner.cache().release(full);
  EXPECT_EQ(runner.cache().free_pages(), runner.cache().total_pages());
}

// Batches of 1 to 64 sequences at different depths; the victim's next token must not notice.
TEST_P(Invariance, BatchSizes) {
  const int64_t n = GetParam().tokens, v = static_cast<int64_t>(vocab());
  const std::vector<int64_t> all{1, 2, 3, 5, 8, 17, 33, 64}, few{2, 17};
  for (const int64_t batch : fewer(all, few)) {
    Runner runner = make(2);
    std::vector<CachedSequence> sequences(static_cast<size_t>(batch));
    std::vector<Runner::Part> parts;
    for (int64_t i = 0; i < batch; ++i) {
      CachedSequence& s = sequences[static_cast<size_t>(i)];
      const int64_t length = i == batch / 2 ? n - 1 : 1 + (i * 37) % std::min<int64_t>(n - 2, 90);
      const auto other = random_ids(length + 1, v, static_cast<uint32_t>(100 + i));
      const std::vector<int32_t>& from = i == batch / 2 ? ids_ : other;
      runner.run({from.begin(), from.begin() + length}, n, s);
      parts.push_back({&s, {from[static_cast<size_t>(length)]}});
    }
    const Logits got = runner.step(parts);
    const auto victim = got.begin() + batch / 2 * v;
    const Logits want(whole_.end() - v, whole_.end());
    EXPECT_TRUE(same_bits(Logits(victim, victim + v), want)) << "batch of " << batch;
  }
}

// The comparison can fail: the reference sums in another order and type.
TEST_P(Invariance, ControlAnotherOrderOfSumsIsSeen) {
  Runner runner(*model_, 1, Backend::kReference, GetParam().format);
  const std::vector<int32_t> start(ids_.begin(), ids_.begin() + 20);
  const Logits got = runner.run(start, 20);
  EXPECT_FALSE(
      same_bits(got, Logits(whole_.begin(), whole_.begin() + static_cast<int64_t>(20 * vocab()))));
}

INSTANTIATE_TEST_SUITE_P(
    Models, Invariance,
    ::testing::Values(Setup{"V32", "tests/golden/model/b_fp32_sparse_yarn", 96, KvFormat::kF32},
                      Setup{"Glm", "tests/golden/model/f_glm_dsa", 80, KvFormat::kBF16},
                      Setup{"Fp8Weights", "tests/golden/model/d2_fp8_ragged", 70, KvFormat::kF32},
                      Setup{"Mini", "models/tamis-mini", 300, KvFormat::kF32},
                      Setup{"MiniFp8Cache", "models/tamis-mini", 290, KvFormat::kFP8},
                      Setup{"MiniInt8", "models/tamis-mini", 280, KvFormat::kF32,
                            NumberFormat::kInt8},
                      Setup{"V32Int4", "tests/golden/model/b_fp32_sparse_yarn", 90, KvFormat::kBF16,
                            NumberFormat::kInt4}),
    [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace tamis
