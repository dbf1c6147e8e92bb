// A model on several ranks gives the bits that it gives on one: every tensor of a trace, prefill
// and decode, on every rank; and a rank holds its own slices only.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>

#include "base/error.h"
#include "eval/trace.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

struct Case {
  std::string folder;
  AttentionKind attention = AttentionKind::kSparse;
  Precision precision = Precision::kExact;
  int64_t tokens = 40;
};

// A rank's model. The group belongs to the caller.
LoadedModel load(const Case& c, Group& group) {
  LoadOptions options;
  options.model.precision = c.precision;
  return LoadedModel(c.folder, options, std::shared_ptr<Group>(&group, [](Group*) {}));
}

Trace trace_of(const Case& c, Group& group) {
  const LoadedModel model = load(c, group);
  KernelContext context(1, Backend::kCpu);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < c.tokens; ++i) {
    ids.push_back(static_cast<int32_t>((i * i * 31 + i * 7 + 3) % model.config().vocab_size));
  }
  TraceOptions options;
  options.policy.kind = c.attention;
  options.policy.seed = 5;
  options.chunk = 27;
  options.greedy = 4;
  return record_trace(context, model, ids, options);
}

// The names of tensors that differ in a bit.
std::string differences(const Trace& a, const Trace& b) {
  std::string names = a.size() == b.size() ? "" : "number of tensors; ";
  for (const auto& [name, t] : a) {
    const auto other = b.find(name);
    const bool same =
        other != b.end() && other->second.shape == t.shape && other->second.ints == t.ints &&
        other->second.floats.size() == t.floats.size() &&
        (t.floats.empty() ||
         std::memcmp(other->second.floats.data(), t.floats.data(), t.floats.size() * 4) == 0);
    if (!same) names += name + "; ";
  }
  return names;
}

void expect_one_ranks_bits(const Case& c, std::vector<int> rank_counts = {2, 4}) {
  SCOPED_TRACE(c.folder + " " + std::string(attention_name(c.attention)));
  const auto alone = single_group();
  const Trace want = trace_of(c, *alone);
  ASSERT_GT(want.at("greedy.ids").ints.size(), 0U);
  for (const int ranks : rank_counts) {
    std::mutex mutex;
    std::vector<std::string> wrong;
    run_as_threads(ranks, [&](Group& group) {
      const std::string different = differences(want, trace_of(c, group));
      if (different.empty()) return;
      const std::lock_guard lock(mutex);
      wrong.push_back("rank " + std::to_string(group.rank()) + ": " + different);
    });
    for (const std::string& line : wrong) ADD_FAILURE() << ranks << " ranks, " << line;
  }
}

std::string source(const std::string& folder) { return TAMIS_SOURCE_DIR "/" + folder; }

// More tokens than each top-k, so that the selection matters.
TEST(ModelRanks, SparseIsBitIdentical) {
  expect_one_ranks_bits({.folder = source("tests/golden/model/b_fp32_sparse_yarn")}, {1, 2, 4, 8});
  expect_one_ranks_bits({.folder = source("tests/golden/model/f_glm_dsa")});
  expect_one_ranks_bits({.folder = source("tests/golden/model/d2_fp8_ragged")});
  expect_one_ranks_bits({.folder = source("models/tamis-mini"), .tokens = 280});
}

TEST(ModelRanks, NativePrecisionIsBitIdentical) {
  expect_one_ranks_bits(
      {.folder = source("tests/golden/model/d2_fp8_ragged"), .precision = Precision::kNative});
}

TEST(ModelRanks, OtherSelectorsAreBitIdentical) {
  for (const auto kind : {AttentionKind::kDense, AttentionKind::kWindow, AttentionKind::kRandom}) {
    expect_one_ranks_bits(
        {.folder = source("tests/golden/model/b_fp32_sparse_yarn"), .attention = kind});
  }
}

TEST(ModelRanks, FixturesAreBitIdentical) {
  const char* folder = std::getenv("TAMIS_FIXTURES");
  if (folder == nullptr) GTEST_SKIP() << "fixture folder not given";
  int cases = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const bool has_weights = fs::exists(entry.path() / "config.json");
    if (!has_weights || entry.path().filename() == "g_v4") continue;
    expect_one_ranks_bits({.folder = entry.path()}, {2});
    ++cases;
  }
  EXPECT_GT(cases, 3);
}

TEST(ModelRanks, RanksThatDoNotDivideAreRefusedOnEveryRank) {
  for (const int ranks : {3, 5}) {
    try {
      run_as_threads(ranks,
                     [](Group& group) { load({.folder = source("models/tamis-mini")}, group); });
      FAIL() << ranks;
    } catch (const UsageError& e) {
      EXPECT_NE(std::string(e.what()).find(std::to_string(ranks) + " ranks do not divide"),
                std::string::npos)
          << e.what();
    }
  }
}

TEST(ModelRanks, OracleIsRefused) {
  const Case c{.folder = source("tests/golden/model/b_fp32_sparse_yarn"),
               .attention = AttentionKind::kOracle};
  trace_of(c, *single_group());
  EXPECT_THROW(run_as_threads(2, [&](Group& group) { trace_of(c, group); }), UsageError);
}

// Bytes that the views of a rank cover.
struct Shares {
  int64_t sliced = 0;      // bytes of tensors of which each rank has its part
  int64_t replicated = 0;  // bytes of tensors that every rank reads whole
};

void add_mlp(const MlpWeights& m, int64_t& bytes) {
  for (const Weight* w : {&m.gate, &m.up, &m.down}) bytes += w->bytes();
}

Shares shares_of(const ModelWeights& w) {
  Shares s;
  s.sliced += w.embed.bytes() + w.head.bytes();
  for (const LayerWeights& l : w.layers) {
    const AttentionWeights& a = l.attention;
    for (const Weight* m : {&a.q_b, &a.kv_b, &a.o}) s.sliced += m->bytes();
    for (const Weight* m : {&a.q_a, &a.kv_a}) s.replicated += m->bytes();
    if (a.indexer) {
      for (const Weight* m : {&a.indexer->wq_b, &a.indexer->wk, &a.indexer->weights_proj}) {
        s.replicated += m->bytes();
      }
    }
    if (l.moe.experts.empty()) {
      add_mlp(l.mlp, s.sliced);
      continue;
    }
    s.replicated += l.moe.router.bytes();
    if (l.moe.shared) add_mlp(*l.moe.shared, s.sliced);
    for (const MlpWeights& e : l.moe.experts) add_mlp(e, s.sliced);
  }
  return s;
}

TEST(ModelRanks, ARankViewsItsSlicesOnly) {
  const Case c{.folder = source("models/tamis-mini")};
  const auto alone = single_group();
  const LoadedModel one = load(c, *alone);
  const Shares whole = shares_of(one.weights());
  EXPECT_GT(whole.sliced, 10 * (whole.replicated / 4));
  for (const int ranks : {2, 4}) {
    std::vector<Shares> parts(static_cast<size_t>(ranks));
    std::vector<int64_t> first_expert(parts.size()), first_vocab(parts.size());
    run_as_threads(ranks, [&](Group& group) {
      const LoadedModel model = load(c, group);
      const auto rank = static_cast<size_t>(group.rank());
      parts[rank] = shares_of(model.weights());
      first_expert[rank] = model.weights().layers.back().moe.first_expert;
      first_vocab[rank] = model.weights().first_vocab;
    });
    for (size_t r = 0; r < parts.size(); ++r) {
      const auto rank = static_cast<int64_t>(r);
      EXPECT_EQ(parts[r].sliced * ranks, whole.sliced) << "rank " << r << " of " << ranks;
      EXPECT_EQ(parts[r].replicated, whole.replicated) << "rank " << r << " of " << ranks;
      EXPECT_EQ(first_expert[r], rank * one.config().num_experts / ranks);
      EXPECT_EQ(first_vocab[r], rank * one.config().vocab_size / ranks);
    }
  }
}

// What a rank views is what lies at its place: rank 1's first row is the whole's middle row.
TEST(ModelRanks, SlicesBeginWhereTheOnesBeforeEnd) {
  const Case c{.folder = source("models/tamis-mini")};
  const auto alone = single_group();
  const LoadedModel one = load(c, *alone);
  run_as_threads(2, [&](Group& group) {
    const LoadedModel model = load(c, group);
    const AttentionWeights &part = model.weights().layers[1].attention,
                           &whole = one.weights().layers[1].attention;
    for (const auto field :
         {&AttentionWeights::q_b, &AttentionWeights::kv_b, &AttentionWeights::o}) {
      const Weight &p = part.*field, &w = whole.*field;
      ASSERT_EQ(p.rows * 2, w.rows);
      const auto bytes = static_cast<size_t>(p.rows * p.row_bytes);
      EXPECT_EQ(std::memcmp(p.data, w.data + group.rank() * static_cast<int64_t>(bytes), bytes), 0);
    }
  });
}

}  // namespace
}  // namespace tamis
