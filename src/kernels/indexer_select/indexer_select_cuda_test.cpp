// indexer_logits and indexer_select on CUDA.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/indexer_select/indexer_select_impl.h"
#include "kernels/indexer_select/test_problem.h"
#include "kernels/topk/topk_impl.h"
#include "support/cuda_cache.h"

namespace tamis {
using namespace indexer_select_test;

namespace {

constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFP8};
constexpr Shape kShapes[] = {{1, 128}, {8, 128}, {2, 16}, {3, 20}, {5, 33}, {9, 128}, {64, 128}};

template <typename T>
bool same_bits(const T* a, const T* b, int64_t n) {
  return std::memcmp(a, b, static_cast<size_t>(n) * sizeof(T)) == 0;
}

// The inputs of a Problem on the device.
class OnDevice {
 public:
  OnDevice(KernelContext& context, const Problem& p, bool native)
      : context_(context), problem_(p), cache_(context, p.cache()), native_(native) {}

  Scores logits(int64_t begin, int64_t end) const {
    const Inputs in(*this, begin, end);
    Scores s;
    s.stride = 1110;
    const Device<float> out(context_, (end - begin) * s.stride);
    indexer_logits(context_, {in.args, out.data(), s.stride});
    s.logits = out.read();
    return s;
  }

  Chosen select(int64_t k, int64_t begin, int64_t end) const {
    const Inputs in(*this, begin, end);
    const Device<int32_t> indices(context_, (end - begin) * k);
    const Device<uint8_t> nan(context_, end - begin);
    indexer_select(context_, {in.args, k, indices.data(), nan.data()});
    return {indices.read(), nan.read()};
  }

  // Of queries that lack their RoPE, turned within the operation or before it.
  Chosen select_turned(int64_t k, int64_t begin, int64_t end, int64_t dims, RopeLayout layout,
                       bool within) const {
    const Inputs in(*this, begin, end);
    const int64_t n = end - begin, heads = in.args.heads, dim = in.args.kv.layout.index_dim;
    const Device<float> cos(context_, random_floats(n * dims / 2, 21)),
        sin(context_, random_floats(n * dims / 2, 22));
    const Device<int32_t> indices(context_, n * k);
    const Device<uint8_t> nan(context_, n);
    IndexerSelectArgs a{in.args, k, indices.data(), nan.data(), {}};
    const RopeArgs turn{in.q.data(), heads * dim, dim,        n,         heads,
                        dims,        layout,      cos.data(), sin.data()};
    if (within) {
      a.query_rope = turn;
    } else {
      rope(context_, turn);
    }
    indexer_select(context_, a);
    return {indices.read(), nan.read()};
  }

 private:
  struct Inputs {
    Inputs(const OnDevice& d, int64_t begin, int64_t end)
        : args(d.problem_.args(begin, end)),
          tokens(d.context_, args.tokens, d.cache_),
          q(d.context_, {args.q, args.q + (end - begin) * args.heads * args.kv.layout.index_dim}),
          w(d.context_, {args.w, args.w + (end - begin) * args.heads}) {
      args.q = q.data();
      args.w = w.data();
      args.kv = d.cache_.layer();
      args.tokens = tokens.map();
      args.q_is_e4m3 = d.native_;
    }
    IndexerArgs args;
    DeviceTokens tokens;
    Device<float> q, w;
  };

  KernelContext& context_;
  const Problem& problem_;
  DeviceCache cache_;
  bool native_;
};

class IndexerCuda : public CudaTest {
 protected:
  void expect_reference(Problem& problem, bool native) {
    problem.measure_keys();
    const Scores want = problem.logits("reference", 0, problem.tokens());
    const Scores got = OnDevice(context(), problem, native).logits(0, problem.tokens());
    for (int64_t t = 0; t < problem.tokens(); ++t) {
      const double tolerance = problem.tolerance(t);
      for (int64_t s = 0; s < got.stride; ++s) {
        if (s >= problem.visible(t)) {
          ASSERT_EQ(got.row(t)[s], -std::numeric_limits<float>::infinity()) << t << " at " << s;
        } else {
          ASSERT_NEAR(got.row(t)[s], want.row(t)[s], tolerance) << "token " << t << " at " << s;
        }
      }
    }
  }
};

TEST_F(IndexerCuda, AgreesWithTheReference) {
  for (const Shape& shape : kShapes) {
    for (const KvFormat format : kFormats) {
      for (const bool native : {false, true}) {
        if (skip_case()) continue;
        SCOPED_TRACE("heads " + std::to_string(shape.heads) + " dim " + std::to_string(shape.dim) +
                     " format " + std::to_string(static_cast<int>(format)));
        Problem problem(shape, format);
        if (native) problem.round_queries();
        expect_reference(problem, native);
      }
    }
  }
}

// A query that picks one dimension shows the key's values as they were decoded, bit for bit.
TEST_F(IndexerCuda, DecodesKeysAsReadIndexKeyDoes) {
  for (const KvFormat format : kFormats) {
    for (const int64_t dim : {33, 128}) {
      Problem problem({1, dim}, format);
      const int64_t last = problem.tokens() - 1;
      std::vector<float> key(static_cast<size_t>(dim));
      for (int64_t d = 0; d < dim; d += 3) {
        if (skip_case()) continue;
        std::fill_n(problem.q(last), dim, 0.0f);
        problem.q(last)[d] = 1;
        problem.w(last)[0] = 1;
        const Scores got = OnDevice(context(), problem, true).logits(last, last + 1);
        for (int64_t s = 0; s < problem.visible(last); ++s) {
          read_index_key(problem.cache().layer(), problem.cache().sequences()[4], s, key.data());
          ASSERT_EQ(got.row(0)[s], std::max(0.0f, key[static_cast<size_t>(d)])) << d << " at " << s;
        }
      }
    }
  }
}

TEST_F(IndexerCuda, BitsDependOnTokenAndPositionAlone) {
  for (const KvFormat format : kFormats) {
    for (const Shape& shape : {Shape{8, 128}, Shape{5, 33}, Shape{64, 128}}) {
      if (skip_case()) continue;
      if (skip_case()) continue;
      Problem problem(shape, format), moved(shape, format, 99);
      problem.round_queries();
      moved.round_queries();
      const OnDevice device(context(), problem, true), other(context(), moved, true);
      const Scores whole = device.logits(0, problem.tokens());
      const int64_t floats = problem.tokens() * whole.stride;
      EXPECT_TRUE(same_bits(whole.row(0), other.logits(0, problem.tokens()).row(0), floats));
      for (int64_t t = 0; t < problem.tokens(); ++t) {
        EXPECT_TRUE(same_bits(whole.row(t), device.logits(t, t + 1).row(0), whole.stride)) << t;
      }
      for (int repeat = 0; repeat < repeats(20); ++repeat) {
        ASSERT_TRUE(same_bits(whole.row(0), device.logits(0, problem.tokens()).row(0), floats));
      }
    }
  }
}

TEST_F(IndexerCuda, SelectionIsTheTopkOfTheScores) {
  for (const KvFormat format : kFormats) {
    for (const Shape& shape : kShapes) {
      if (skip_case()) continue;
      Problem problem(shape, format);
      problem.round_queries();
      const OnDevice device(context(), problem, true);
      const Scores scores = device.logits(0, problem.tokens());
      for (const int64_t k : {1, 64, 300}) {
        const Chosen got = device.select(k, 0, problem.tokens());
        for (int64_t t = 0; t < problem.tokens(); ++t) {
          std::vector<int32_t> want(static_cast<size_t>(k));
          topk_row_reference(scores.row(t), problem.visible(t), k, want.data());
          ASSERT_TRUE(same_bits(got.indices.data() + t * k, want.data(), k))
              << "heads " << shape.heads << " k " << k << " token " << t;
          ASSERT_EQ(got.nan[static_cast<size_t>(t)], 0);
        }
      }
    }
  }
}

TEST_F(IndexerCuda, TurnsQueriesWhereItReadsThem) {
  for (const Shape& shape : {Shape{1, 128}, Shape{3, 20}, Shape{4, 256}, Shape{5, 33}}) {
    for (const int64_t dims : {int64_t{4}, int64_t{16}, shape.dim / 4 * 4, int64_t{18}}) {
      if (skip_case()) continue;
      const Problem problem(shape, KvFormat::kF32);
      const OnDevice device(context(), problem, false);
      for (const RopeLayout layout : {RopeLayout::kInterleaved, RopeLayout::kHalfSplit}) {
        for (const int64_t begin : {int64_t{0}, problem.tokens() - 1}) {
          Chosen chosen[2];
          for (const bool within : {false, true}) {
            chosen[within ? 1 : 0] =
                device.select_turned(64, begin, problem.tokens(), dims, layout, within);
          }
          EXPECT_EQ(chosen[0].indices, chosen[1].indices) << shape.heads << " " << dims;
          EXPECT_EQ(chosen[0].nan, chosen[1].nan);
        }
      }
    }
  }
}

TEST_F(IndexerCuda, NanIsReportedForItsTokenAlone) {
  for (const bool native : {false, true}) {
    Problem problem({8, 128}, KvFormat::kFP8);
    problem.round_queries();
    problem.q(10)[3 * 128] = NAN;
    const Chosen got = OnDevice(context(), problem, native).select(64, 0, problem.tokens());
    for (int64_t t = 0; t < problem.tokens(); ++t) {
      EXPECT_EQ(got.nan[static_cast<size_t>(t)], t == 10 ? 1 : 0) << t;
    }
  }
}

// The bits of the operation that serves a model (indexer_logits.cu), whose order is spelled out
// here, on numbers that round.
TEST_F(IndexerCuda, TrainingHasTheScoresOfServing) {
  std::vector<int32_t> positions;  // of sequences of 1, 40, 129 tokens
  for (const int32_t count : {1, 40, 129}) {
    for (int32_t s = 0; s < count; ++s) positions.push_back(s);
  }
  const auto n = static_cast<int64_t>(positions.size());
  const int64_t longest = 129, first = 3;
  const Device<int32_t> position(context(), positions);
  for (const auto& [heads, dim] :
       {std::pair<int64_t, int64_t>{4, 128}, {9, 20}, {3, 7}, {64, 32}}) {
    if (skip_case()) continue;
    const std::vector<float> q = random_floats(n * heads * dim, 1), w = random_floats(n * heads, 2);
    const std::vector<float> k = random_floats(n * dim, 3);
    const Device<float> q_(context(), q), w_(context(), w), k_(context(), k);
    const Device<float> out(context(), (n - first) * longest);
    IndexerSelectTrainArgs a{q_.data(), w_.data(), k_.data(), n, heads, dim, 0, nullptr};
    a.sequences = {position.data(), longest};
    indexer_train_scores(context(), a, {first, n - first, longest}, out.data(), longest);
    const std::vector<float> got = out.read();
    for (int64_t t = first; t < n; ++t) {
      const int64_t at = positions[static_cast<size_t>(t)];
      for (int64_t s = 0; s <= at; ++s) {
        float group[4] = {};
        for (int64_t h = 0; h < heads; ++h) {
          float dot = 0;
          for (int64_t d = 0; d < dim; ++d) {
            dot = std::fma(q[static_cast<size_t>((t * heads + h) * dim + d)],
                           k[static_cast<size_t>((t - at + s) * dim + d)], dot);
          }
          float& sum = group[h % 4];
          sum = std::fma(w[static_cast<size_t>(t * heads + h)], dot < 0 ? 0.0f : dot, sum);
        }
        ASSERT_EQ(got[static_cast<size_t>((t - first) * longest + s)],
                  ((group[0] + group[1]) + group[2]) + group[3])
            << heads << " heads, token " << t << " key " << s;
      }
    }
  }
}

}  // namespace
}  // namespace tamis
