// Reads and recall of a small model's passes: shares that are shares, of what was selected, and a
// pass that is the same to the bit with a probe and without.
#include "engine/selection_probe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "engine/engine.h"

namespace tamis {
namespace {

class SelectionProbeTest : public ::testing::Test {
 protected:
  SelectionProbeTest()
      : context_(1),
        model_(TAMIS_SOURCE_DIR "/tests/golden/model/b_fp32_sparse_yarn", {}, single_group()) {
    options_.policy.topk = model_.config().index_topk;
    options_.cache.pages = 32;
  }
  std::vector<SampledToken> run(AttentionKind kind, int64_t prompt, int64_t reads, double recall) {
    EngineOptions o = options_;
    o.recall_sample = recall;
    Engine engine(model_, context_, o);
    Request r;
    for (int64_t i = 0; i < prompt; ++i) {
      r.prompt.push_back(static_cast<int32_t>(i * 37 % model_.config().vocab_size));
    }
    r.max_tokens = 12;
    r.top_reads = reads;
    r.attention = options_.policy;
    r.attention->kind = kind;
    engine.submit(r);
    std::vector<SampledToken> out;
    std::vector<TokenEvent> events;
    while (!engine.idle()) {
      engine.step(events);
      for (const TokenEvent& e : events) {
        EXPECT_EQ(e.error, "");
        out.push_back(e.token);
      }
    }
    stats_ = engine.stats().selection;
    timed_seconds_ = engine.stats().timed_seconds;
    indexer_seconds_ = engine.stats().indexer_seconds;
    return out;
  }

  KernelContext context_;
  LoadedModel model_;
  EngineOptions options_;
  SelectionStats stats_;
  double timed_seconds_ = 0, indexer_seconds_ = 0;
};

// The first pass is one of those that are timed.
TEST_F(SelectionProbeTest, TheIndexersShareOfTheTime) {
  run(AttentionKind::kSparse, 50, 0, 0);
  EXPECT_GT(indexer_seconds_, 0);
  EXPECT_LT(indexer_seconds_, timed_seconds_);
  run(AttentionKind::kWindow, 50, 0, 0);
  EXPECT_EQ(indexer_seconds_, 0);
  EXPECT_GT(timed_seconds_, 0);
}

TEST_F(SelectionProbeTest, SharesOfAllThatIsReadMakeOne) {
  constexpr int64_t kPrompt = 50, kAll = 64;
  for (const AttentionKind kind : {AttentionKind::kSparse, AttentionKind::kDense}) {
    const auto tokens = run(kind, kPrompt, kAll, 0);
    ASSERT_EQ(tokens.size(), 12U);
    for (size_t t = 0; t < tokens.size(); ++t) {
      const TokenReads& reads = tokens[t].reads;
      const auto last = kPrompt - 1 + static_cast<int64_t>(t);
      EXPECT_EQ(reads.position, last);
      std::vector<double> sums(static_cast<size_t>(model_.config().num_layers()));
      std::set<int32_t> seen;
      double before = 1e9;
      for (const ReadPosition& r : reads.top) {
        EXPECT_TRUE(r.position >= 0 && r.position <= last && seen.insert(r.position).second);
        ASSERT_EQ(r.share.size(), sums.size());
        double total = 0;
        for (size_t l = 0; l < sums.size(); ++l) {
          sums[l] += r.share[l];
          total += r.share[l];
        }
        EXPECT_LE(total, before + 1e-6);
        before = total;
      }
      // Each head's shares make one, but for the rounding of float32 sums of some 60 terms.
      for (const double s : sums) EXPECT_NEAR(s, 1, 64 * 0x1p-23) << t;
    }
  }
}

TEST_F(SelectionProbeTest, NoLayerReadsMoreThanItsSelection) {
  const auto topk = static_cast<size_t>(options_.policy.topk);
  ASSERT_LT(topk, 50U);
  for (const SampledToken& t : run(AttentionKind::kSparse, 50, 64, 0)) {
    for (size_t l = 0; l < static_cast<size_t>(model_.config().num_layers()); ++l) {
      const auto read = std::count_if(t.reads.top.begin(), t.reads.top.end(),
                                      [&](const ReadPosition& r) { return r.share[l] > 0; });
      EXPECT_LE(static_cast<size_t>(read), topk);
      EXPECT_GT(read, 0);
    }
  }
}

// What the sparse answer's tokens keep of dense attention, beside what dense attention itself says:
// of the first token, which both ways read in the same context, in the first layer, which no
// selection has yet changed, the dense shares are those that a dense request reads.
TEST_F(SelectionProbeTest, DenseAttentionStandsBesideTheSelection) {
  const auto sparse = run(AttentionKind::kSparse, 50, 64, 1);
  std::vector<double> kept(stats_.layers.size());
  for (const SampledToken& t : sparse) {
    ASSERT_EQ(t.reads.kept.size(), kept.size());
    for (size_t l = 0; l < kept.size(); ++l) {
      kept[l] += t.reads.kept[l];
      double dense = 0, missed = 0;
      for (const ReadPosition& r : t.reads.top) {
        ASSERT_EQ(r.dense.size(), kept.size());
        (r.share[l] > 0 ? dense : missed) += r.dense[l];
      }
      EXPECT_GT(missed + dense, 0);
      // Each of the 16 selected positions may be below what is told.
      const auto untold = static_cast<double>(options_.policy.topk) * ReadPosition::kLeast;
      EXPECT_LE(dense, t.reads.kept[l] + 1e-5);
      EXPECT_GE(dense, t.reads.kept[l] - untold - 1e-5);
    }
  }
  for (size_t l = 0; l < kept.size(); ++l) {
    EXPECT_NEAR(kept[l], stats_.layers[l].kept, 12 * 0x1p-22);
    EXPECT_LT(kept[l], 12);
  }
  const auto dense = run(AttentionKind::kDense, 50, 64, 0);
  for (const SampledToken& t : dense) {
    for (const float k : t.reads.kept) EXPECT_NEAR(k, 1, 64 * 0x1p-23);
    for (const ReadPosition& r : t.reads.top) {
      for (size_t l = 0; l < kept.size(); ++l) {
        EXPECT_EQ(r.dense[l], r.share[l] < ReadPosition::kLeast ? 0 : r.share[l]);
      }
    }
  }
  for (const ReadPosition& r : sparse[0].reads.top) {
    const auto& all = dense[0].reads.top;
    const auto same = std::find_if(all.begin(), all.end(),
                                   [&](const ReadPosition& d) { return d.position == r.position; });
    ASSERT_NE(same, all.end());
    EXPECT_NEAR(r.dense[0], same->dense[0], 1e-6);
  }
}

TEST_F(SelectionProbeTest, TheAnswerIsTheSameToTheBit) {
  const auto plain = run(AttentionKind::kSparse, 50, 0, 0);
  const auto probed = run(AttentionKind::kSparse, 50, 5, 1);
  ASSERT_EQ(plain.size(), probed.size());
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_EQ(plain[i].id, probed[i].id);
    EXPECT_EQ(std::memcmp(&plain[i].logprob, &probed[i].logprob, sizeof(float)), 0);
    EXPECT_EQ(plain[i].reads.top.size(), 0U);
    EXPECT_EQ(probed[i].reads.top.size(), 5U);
  }
}

TEST_F(SelectionProbeTest, WhatIsKeptOfDenseAttention) {
  run(AttentionKind::kDense, 50, 0, 1);
  for (const auto& l : stats_.layers) {
    EXPECT_EQ(l.tokens, 12);
    EXPECT_NEAR(l.kept / 12, 1, 64 * 0x1p-23);
  }
  run(AttentionKind::kSparse, 50, 0, 0.5);
  int64_t distances = 0;
  for (const int64_t n : stats_.distance) distances += n;
  for (const auto& l : stats_.layers) {
    EXPECT_EQ(l.tokens, 6);
    EXPECT_GT(l.kept, 0);
    EXPECT_LT(l.kept / 6, 1);
  }
  EXPECT_EQ(distances, 6 * model_.config().num_layers() * options_.policy.topk);
  // A window's positions lie side by side: their distances are known.
  run(AttentionKind::kWindow, 50, 0, 1);
  const auto k = options_.policy.topk;
  EXPECT_EQ(stats_.distance_sum,
            static_cast<double>(12 * model_.config().num_layers() * (k * (k - 1) / 2)));
  run(AttentionKind::kSparse, 50, 0, 0);
  for (const auto& l : stats_.layers) EXPECT_EQ(l.tokens, 0);
}

}  // namespace
}  // namespace tamis
