// What a token selects in training, on CUDA: exactly, also where scores that decide nothing are
// approximate.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/indexer_select/indexer_select_impl.h"
#include "kernels/indexer_select/train_problem.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;

class IndexerSelectTrainCuda : public CudaTest {};

// What an indexer may be given: scores of many sizes, keys that differ in their last bits, values
// that overflow or are none, and next to nothing.
enum class Hostile : uint8_t { kNo, kNearTies, kTies, kNotFinite, kHuge, kTiny };

struct Problem {
  Floats q, w, k;
};

Problem problem(const IndexShape& shape, int64_t tokens, Hostile kind) {
  Problem p{random_floats(tokens * shape.heads * shape.dim, 11),
            random_floats(tokens * shape.heads, 13), random_floats(tokens * shape.dim, 12)};
  const auto dim = static_cast<size_t>(shape.dim);
  const auto scale = [](Floats& x, float by) {
    for (float& v : x) v *= by;
  };
  switch (kind) {
    case Hostile::kNo:
      break;
    case Hostile::kNearTies:  // three kinds of keys, each with a few bits of its own
    case Hostile::kTies:
      for (size_t i = 3 * dim; i < p.k.size(); ++i) {
        p.k[i] = p.k[i % (3 * dim)];
        if (kind == Hostile::kNearTies && i % 7 == 0) p.k[i] = std::nextafter(p.k[i], 2.0f);
      }
      break;
    case Hostile::kNotFinite:
      p.k[p.k.size() / 2] = INFINITY;
      p.k[p.k.size() / 3] = NAN;
      p.w[p.w.size() / 5] = -INFINITY;
      break;
    case Hostile::kHuge:
      scale(p.q, 1e19F);
      scale(p.k, 1e18F);
      break;
    case Hostile::kTiny:
      scale(p.q, 1e-20F);
      scale(p.k, 1e-18F);
      scale(p.w, 1e-3F);
      break;
  }
  return p;
}

// Approximate scores where they decide nothing change no selection, one sequence or several.
TEST_F(IndexerSelectTrainCuda, FilteredSelectionIsTheExactOne) {
  // The work grows with the square; a sanitizer sees every kernel at 450 too.
  const std::vector<int64_t> lengths =
      thinned() ? std::vector<int64_t>{65, 450} : std::vector<int64_t>{65, 2500, 9000};
  for (const IndexShape& shape : {IndexShape{64, 128}, IndexShape{64, 32}, IndexShape{3, 7}}) {
    for (const Hostile kind : {Hostile::kNo, Hostile::kNearTies, Hostile::kTies,
                               Hostile::kNotFinite, Hostile::kHuge, Hostile::kTiny}) {
      for (const int64_t tokens : lengths) {
        if (tokens == 9000 && shape.heads == 64 && (kind != Hostile::kNo || shape.dim < 128))
          continue;
        if (skip_case()) continue;
        const Problem p = problem(shape, tokens, kind);
        const Ragged ragged(tokens);
        const Device<int32_t> position(context(), ragged.position);
        const Device<float> q(context(), p.q), w(context(), p.w), keys(context(), p.k);
        for (const int64_t k : {1, 64, 2048}) {
          SCOPED_TRACE(std::to_string(shape.heads) + " kind " +
                       std::to_string(static_cast<int>(kind)) + " tokens " +
                       std::to_string(tokens) + " k " + std::to_string(k));
          const Device<int32_t> indices(context(), tokens * k);
          IndexerSelectTrainArgs a{q.data(),    w.data(),  keys.data(), tokens,
                                   shape.heads, shape.dim, k,           indices.data()};
          for (const bool several : {false, true}) {
            if (several) a.sequences = {position.data(), ragged.longest};
            context().force("indexer_train_scores", "cuda");
            indexer_select_train(context(), a);
            const std::vector<int32_t> want = indices.read();
            context().force("indexer_train_scores", "cuda_filter");
            indexer_select_train(context(), a);
            ASSERT_EQ(indices.read(), want) << (several ? "in several" : "in one");
          }
        }
      }
    }
  }
}

// Most scores are approximate, and none is further from the exact one than it may be.
TEST_F(IndexerSelectTrainCuda, FilteredScoresAreNear) {
  constexpr int64_t kTokens = 700, kSelected = 64;
  for (const IndexShape& shape : {IndexShape{64, 128}, IndexShape{17, 50}}) {
    if (skip_case()) continue;
    const Problem p = problem(shape, kTokens, Hostile::kNo);
    const Device<float> q(context(), p.q), w(context(), p.w), keys(context(), p.k);
    const Device<float> near(context(), kTokens * kTokens), exact(context(), kTokens * kTokens);
    const IndexerSelectTrainArgs a{q.data(),    w.data(),  keys.data(), kTokens,
                                   shape.heads, shape.dim, kSelected,   nullptr};
    ASSERT_TRUE(indexer_train_filters(context(), a));
    indexer_train_filter_keys(context(), a);
    const TrainScores all{0, kTokens, kTokens};
    indexer_train_filter(context(), a, all, near.data(), kTokens);
    indexer_train_scores(context(), a, all, exact.data(), kTokens);
    const Floats got = near.read(), want = exact.read();
    double key = 0;
    for (int64_t s = 0; s < kTokens; ++s) {
      key = std::max(key, norm2(p.k.data() + s * shape.dim, shape.dim));
    }
    int64_t equal = 0, count = 0;
    for (int64_t t = kSelected; t < kTokens; ++t) {
      double bound = 0;
      for (int64_t j = t * shape.heads; j < (t + 1) * shape.heads; ++j) {
        bound += std::fabs(p.w[static_cast<size_t>(j)]) *
                 norm2(p.q.data() + j * shape.dim, shape.dim) * key;
      }
      for (int64_t s = t * kTokens; s <= t * kTokens + t; ++s, ++count) {
        const auto at = static_cast<size_t>(s);
        ASSERT_NEAR(got[at], want[at], 0x1p-14 * bound) << t << " " << s;
        equal += got[at] == want[at] ? 1 : 0;
      }
    }
    EXPECT_LT(equal, count / 2);
  }
}

// Quarters and weights that are powers of two tie often, and no sum of them is rounded.
TEST_F(IndexerSelectTrainCuda, SelectionIsExact) {
  for (const IndexShape& shape : kIndexShapes) {
    for (const int64_t tokens : {1, 63, 64, 65, 300, 1100, 2000, 4200, 9000}) {
      for (const int64_t k : {1, 33, 64, 400}) {
        if (tokens > 300 && (shape.heads != 3 || k != 33)) continue;
        if (skip_case()) continue;
        const auto width = shape.heads * shape.dim;
        Problem p{quarters(tokens * width, 1),
                  Floats(static_cast<size_t>(tokens * shape.heads), 0.5f),
                  quarters(tokens * shape.dim, 3)};
        for (size_t i = 0; i < p.w.size(); i += 3) p.w[i] = -0.25f;
        IndexerSelectTrainArgs a{p.q.data(),  p.w.data(), p.k.data(), tokens,
                                 shape.heads, shape.dim,  k,          nullptr};
        std::vector<int32_t> want(static_cast<size_t>(tokens * k));
        a.indices = want.data();
        KernelContext host(1, Backend::kReference);
        if (tokens <= 300) indexer_select_train(host, a);
        const Device<float> q(context(), p.q), w(context(), p.w), keys(context(), p.k);
        const Device<int32_t> indices(context(), tokens * k);
        indexer_select_train(context(), {q.data(), w.data(), keys.data(), tokens, shape.heads,
                                         shape.dim, k, indices.data()});
        if (tokens > 300) want = indices.read();  // too long for the reference
        ASSERT_EQ(indices.read(), want) << shape.dim << " " << tokens << " " << k;
        const Ragged ragged(tokens);
        const Device<int32_t> position(context(), ragged.position);
        const std::vector<int32_t> each = ragged.rows([&](int64_t begin, int64_t count) {
          IndexerSelectTrainArgs part = a;
          part.q += begin * shape.heads * shape.dim;
          part.w += begin * shape.heads;
          part.keys += begin * shape.dim;
          part.tokens = count;
          std::vector<int32_t> rows(static_cast<size_t>(count * k));
          part.indices = rows.data();
          indexer_select_train(host, part);
          return rows;
        });
        indexer_select_train(context(), {q.data(),
                                         w.data(),
                                         keys.data(),
                                         tokens,
                                         shape.heads,
                                         shape.dim,
                                         k,
                                         indices.data(),
                                         {position.data(), ragged.longest}});
        ASSERT_EQ(indices.read(), each) << "in several";
        const int64_t words = selection_words(ragged.longest);
        const int64_t all = tokens * selection_words_in_all(ragged.longest);
        std::vector<uint64_t> bits(static_cast<size_t>(all));
        mask_selection(host, {each.data(),
                              tokens,
                              k,
                              {ragged.position.data(), ragged.longest},
                              bits.data(),
                              tokens,
                              words});
        bits.resize(static_cast<size_t>(tokens * words));
        for (const char* name : {"cuda", "cuda_topk"}) {
          context().force("select_mask", name);
          const Device<uint64_t> got(context(), all);
          IndexerSelectTrainArgs there{q.data(),    w.data(),  keys.data(), tokens,
                                       shape.heads, shape.dim, k,           indices.data()};
          there.sequences = {position.data(), ragged.longest};
          select_mask(context(), {there, got.data(), tokens, words});
          std::vector<uint64_t> read = got.read();
          for (int64_t t = 0; t < tokens; ++t) {
            for (int64_t tile = 0; tile < words; ++tile) {
              if (ragged.position[static_cast<size_t>(t)] % 64 != 0) continue;
              bool any = false;
              for (int64_t i = t; i < std::min(tokens, t + 64); ++i) {
                if (i > t && ragged.position[static_cast<size_t>(i)] % 64 == 0) break;
                any = any || bits[static_cast<size_t>(tile * tokens + i)] != 0;
              }
              EXPECT_EQ(SelectionMask({read.data(), tokens, words}).has_tile(t, tile), any);
            }
          }
          read.resize(bits.size());
          ASSERT_EQ(read, bits) << name;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tamis
