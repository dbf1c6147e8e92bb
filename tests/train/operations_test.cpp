// The backward operations with shapes of their own: every implementation in float against the
// reference in double, long rows, short rows, rows shorter than k, and scores that tie at 0.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "kernels/mla_sparse/ordered_scatter.h"
#include "kernels/ops.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"
#include "kernels/train_ops.h"
#include "tensor/convert.h"
#include "train/optimizer.h"
#include "train/tiny.h"

namespace tamis {
namespace {

std::vector<double> doubles(const std::vector<float>& x) { return {x.begin(), x.end()}; }

// `terms` roundings of sums and of the exponential's argument, each relative to the whole tensor:
// a softmax's error is its scores' times at most 1, and scores here are below 8.
void expect_close(const std::vector<float>& got, const std::vector<double>& want, int64_t terms,
                  const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  double norm = 0, error = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    norm += want[i] * want[i];
    error += (got[i] - want[i]) * (got[i] - want[i]);
  }
  EXPECT_LE(std::sqrt(error), 8 * kUnitF32 * static_cast<double>(terms) * std::sqrt(norm)) << what;
}

template <typename T>
struct Dense {
  explicit Dense(const MlaSequence<float>& s, const std::vector<std::vector<float>>& inputs)
      : q(inputs[0].begin(), inputs[0].end()),
        kv(inputs[1].begin(), inputs[1].end()),
        k_pe(inputs[2].begin(), inputs[2].end()),
        d_out(inputs[3].begin(), inputs[3].end()),
        dq(q.size()),
        dkv(kv.size()),
        dk_pe(k_pe.size()) {
    in = {q.data(), kv.data(), k_pe.data(), s.tokens, s.heads, s.nope, s.rope, s.v_dim, T(0.2)};
  }
  void run(const std::string& implementation, int threads) {
    KernelContext context(threads);
    context.force("mla_dense_backward", implementation);
    mla_dense_backward<T>(context, {in, d_out.data(), dq.data(), dkv.data(), dk_pe.data()});
  }
  MlaSequence<T> in;
  std::vector<T> q, kv, k_pe, d_out, dq, dkv, dk_pe;
};

TEST(MlaDenseBackward, EveryImplementationIsTheReference) {
  for (const int64_t tokens : {1, 2, 127, 128, 129, 300}) {
    for (const bool wide : {false, true}) {
      MlaSequence<float> s;
      s.tokens = tokens;
      s.heads = wide ? 2 : 3;
      s.nope = wide ? 33 : 5;
      s.rope = wide ? 16 : 2;
      s.v_dim = wide ? 31 : 1;
      const int64_t rows = tokens * s.heads;
      const std::vector<std::vector<float>> inputs = {
          random_floats(rows * (s.nope + s.rope), 1), random_floats(rows * (s.nope + s.v_dim), 2),
          random_floats(tokens * s.rope, 3), random_floats(rows * s.v_dim, 4)};
      Dense<double> want(s, inputs);
      want.run("reference", 1);
      for (const char* name : {"simd", "reference"}) {
        SCOPED_TRACE(std::string(name) + " " + std::to_string(tokens));
        Dense<float> got(s, inputs);
        got.run(name, 2);
        const int64_t terms = tokens * s.heads + s.nope + s.rope + s.v_dim;
        expect_close(got.dq, want.dq, terms, "dq");
        expect_close(got.dkv, want.dkv, terms, "dkv");
        expect_close(got.dk_pe, want.dk_pe, terms, "dk_pe");
      }
    }
  }
}

// Row t selects up to k of its positions: every row has one, many more than k to choose from.
std::vector<int32_t> selection(int64_t tokens, int64_t k) {
  Random random(5, 5);
  std::vector<int32_t> indices;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int32_t> row;
    for (int64_t s = 0; s <= t; ++s) {
      const int64_t wanted = k - static_cast<int64_t>(row.size()), left = t + 1 - s;
      if (random.below(left) < wanted) row.push_back(static_cast<int32_t>(s));
    }
    row.resize(static_cast<size_t>(k), -1);
    indices.insert(indices.end(), row.begin(), row.end());
  }
  return indices;
}

TEST(InvertedIndex, EveryBlockOfASequenceHasItsOwnPairs) {
  constexpr int64_t kTokens = 50, kK = 7, kBlock = 9;
  const std::vector<int32_t> indices = selection(kTokens, kK);
  InvertedIndex index(kTokens);
  for (int64_t begin = 0; begin < kTokens; begin += kBlock) {
    const int32_t* block = indices.data() + begin * kK;
    const int64_t pairs = std::min(kBlock, kTokens - begin) * kK;
    std::vector<std::vector<int64_t>> want(kTokens), got(kTokens);
    for (int64_t i = 0; i < pairs; ++i) {
      if (block[i] >= 0) want[static_cast<size_t>(block[i])].push_back(i);
    }
    index.build(block, pairs / kK, kK);
    for (int64_t i = 0; i < index.touched(); ++i) {
      std::vector<int64_t>& own = got[static_cast<size_t>(index.position(i))];
      index.for_each(i, [&](int64_t pair) { own.push_back(pair); });
      EXPECT_FALSE(own.empty());
    }
    EXPECT_EQ(got, want) << begin;
  }
}

struct SparseShape {
  int64_t tokens, heads, kv_lora, rope, k;
};

template <typename T>
struct Sparse {
  Sparse(const SparseShape& s, const std::vector<int32_t>& indices,
         const std::vector<std::vector<float>>& inputs)
      : q_latent(inputs[0].begin(), inputs[0].end()),
        q_pe(inputs[1].begin(), inputs[1].end()),
        c_kv(inputs[2].begin(), inputs[2].end()),
        k_pe(inputs[3].begin(), inputs[3].end()),
        d_out(inputs[4].begin(), inputs[4].end()),
        dq_latent(q_latent.size()),
        dq_pe(q_pe.size()),
        dc_kv(c_kv.size()),
        dk_pe(k_pe.size()),
        p(static_cast<size_t>(s.tokens * s.k)) {
    args = {q_latent.data(), q_pe.data(),      s.rope + 1,   c_kv.data(),    k_pe.data(), s.tokens,
            s.heads,         s.kv_lora,        s.rope,       indices.data(), s.k,         T(0.15),
            d_out.data(),    dq_latent.data(), dq_pe.data(), dc_kv.data(),   dk_pe.data()};
  }
  void run(const std::string& implementation, int threads) {
    KernelContext context(threads);
    context.force("mla_sparse_backward", implementation);
    context.force("mla_sparse_target", implementation);
    mla_sparse_backward<T>(context, args);
    mla_sparse_target<T>(context, {args, p.data()});
  }
  MlaSparseBackwardArgs<T> args;
  std::vector<T> q_latent, q_pe, c_kv, k_pe, d_out, dq_latent, dq_pe, dc_kv, dk_pe, p;
};

// q_latent, q_pe, c_kv, k_pe and d_out.
std::vector<std::vector<float>> sparse_inputs(const SparseShape& s) {
  const int64_t rows = s.tokens * s.heads;
  return {random_floats(rows * s.kv_lora, 1), random_floats(rows * (s.rope + 1), 2),
          random_floats(s.tokens * s.kv_lora, 3), random_floats(s.tokens * s.rope, 4),
          random_floats(rows * s.kv_lora, 5)};
}

TEST(MlaSparseBackward, EveryImplementationIsTheReference) {
  const SparseShape shapes[] = {{1, 1, 1, 2, 1}, {130, 3, 40, 6, 17}, {200, 2, 16, 4, 200}};
  for (const SparseShape& s : shapes) {
    const std::vector<int32_t> indices = selection(s.tokens, s.k);
    const std::vector<std::vector<float>> inputs = sparse_inputs(s);
    Sparse<double> want(s, indices, inputs);
    want.run("reference", 1);
    for (const char* name : {"simd", "reference"}) {
      SCOPED_TRACE(std::string(name) + " " + std::to_string(s.tokens));
      Sparse<float> got(s, indices, inputs);
      got.run(name, 2);
      const int64_t terms = s.tokens * s.heads + s.kv_lora + s.rope;
      expect_close(got.dq_latent, want.dq_latent, terms, "dq_latent");
      expect_close(got.dq_pe, want.dq_pe, terms, "dq_pe");
      expect_close(got.dc_kv, want.dc_kv, terms, "dc_kv");
      expect_close(got.dk_pe, want.dk_pe, terms, "dk_pe");
      expect_close(got.p, want.p, terms, "p");
    }
  }
}

// Calls for some tokens at a time, in order, with the rows before them.
TEST(MlaSparseBackward, TokensInTurnLeaveTheBitsOfAllAtOnce) {
  const SparseShape s{130, 3, 40, 6, 17};
  const std::vector<int32_t> indices = selection(s.tokens, s.k);
  const std::vector<std::vector<float>> inputs = sparse_inputs(s);
  KernelContext context(2);
  for (const char* name : {"simd", "reference"}) {
    context.force("mla_sparse_backward", name);
    context.force("mla_sparse_target", name);
    Sparse<float> all(s, indices, inputs), parts(s, indices, inputs);
    parts.dc_kv.assign(parts.dc_kv.size(), 7);  // written, not added to
    std::vector<float> out(all.q_latent.size()), out_of_parts(out.size());
    mla_sparse_backward<float>(context, all.args);
    mla_sparse_target<float>(context, {all.args, all.p.data()});
    mla_sparse_train(context, {all.args, out.data()});
    for (const auto& [begin, end] : {std::pair{0, 37}, {37, 38}, {38, 130}}) {
      MlaSparseBackwardArgs<float> a = parts.args;
      const int64_t head = begin * s.heads;
      a.first = begin;
      a.tokens = end - begin;
      a.q_latent += head * s.kv_lora;
      a.d_out += head * s.kv_lora;
      a.dq_latent += head * s.kv_lora;
      a.q_pe += head * a.q_pe_stride;
      a.dq_pe += head * a.q_pe_stride;
      a.indices += begin * s.k;
      mla_sparse_backward<float>(context, a);
      mla_sparse_target<float>(context, {a, parts.p.data() + begin * s.k});
      mla_sparse_train(context, {a, out_of_parts.data() + head * s.kv_lora});
    }
    EXPECT_EQ(parts.dq_latent, all.dq_latent) << name;
    EXPECT_EQ(parts.dq_pe, all.dq_pe) << name;
    EXPECT_EQ(parts.dc_kv, all.dc_kv) << name;
    EXPECT_EQ(parts.dk_pe, all.dk_pe) << name;
    EXPECT_EQ(parts.p, all.p) << name;
    EXPECT_EQ(out_of_parts, out) << name;
  }
}

template <typename T>
struct Kl {
  Kl(int64_t tokens, int64_t heads, int64_t dim, const std::vector<std::vector<float>>& inputs)
      : q(inputs[0].begin(), inputs[0].end()),
        w(inputs[1].begin(), inputs[1].end()),
        k(inputs[2].begin(), inputs[2].end()),
        dq(q.size()),
        dw(w.size()),
        dk(k.size()),
        kl(static_cast<size_t>(tokens)) {
    in = {q.data(), w.data(),  k.data(),  tokens,    heads,    dim,
          0.5,      kl.data(), dq.data(), dw.data(), dk.data()};
  }
  IndexerSequence<T> in;
  std::vector<T> q, w, k, dq, dw, dk;
  std::vector<double> kl;
};

void expect_same(const Kl<float>& got, const Kl<double>& want, int64_t terms) {
  expect_close(got.dq, want.dq, terms, "dq");
  expect_close(got.dw, want.dw, terms, "dw");
  expect_close(got.dk, want.dk, terms, "dk");
  for (size_t t = 0; t < got.kl.size(); ++t) {
    // The sum of p (ln p - ln q): both logarithms are off by their scores' error.
    ASSERT_NEAR(got.kl[t], want.kl[t], 8 * kUnitF32 * static_cast<double>(terms)) << t;
  }
}

class IndexerKl : public testing::TestWithParam<bool> {
 protected:
  static constexpr int64_t kTokens = 140, kHeads = 3, kDim = 20;
  // Small weights, so that scores stay below 8. With ties: every product is negative for half of
  // the queries, and their scores are all exactly 0.
  std::vector<std::vector<float>> inputs() const {
    std::vector<std::vector<float>> x = {random_floats(kTokens * kHeads * kDim, 1),
                                         random_floats(kTokens * kHeads, 2),
                                         random_floats(kTokens * kDim, 3)};
    for (float& w : x[1]) w *= 0.3F;
    if (!GetParam()) return x;
    for (float& k : x[2]) k = std::abs(k);
    for (int64_t i = 0; i < kTokens * kHeads * kDim / 2; ++i) {
      float& q = x[0][static_cast<size_t>(i)];
      q = -std::abs(q);
    }
    return x;
  }
};

TEST_P(IndexerKl, DenseIsTheReference) {
  MlaSequence<float> s;
  s.tokens = kTokens;
  s.heads = 2;
  s.nope = 6;
  s.rope = 4;
  s.v_dim = 3;
  const std::vector<std::vector<float>> attention = {random_floats(kTokens * 2 * 10, 4),
                                                     random_floats(kTokens * 2 * 9, 5),
                                                     random_floats(kTokens * 4, 6),
                                                     {}};
  const Dense<float> target(s, attention);
  const Dense<double> exact(s, attention);
  Kl<double> want(kTokens, kHeads, kDim, inputs());
  KernelContext reference(1);
  indexer_kl_dense<double>(reference, {want.in, exact.in});
  for (const char* name : {"simd", "reference"}) {
    SCOPED_TRACE(name);
    KernelContext context(2);
    context.force("indexer_kl_dense", name);
    Kl<float> got(kTokens, kHeads, kDim, inputs());
    indexer_kl_dense<float>(context, {got.in, target.in});
    expect_same(got, want, kTokens * kHeads + kDim + 10);
  }
}

TEST_P(IndexerKl, SparseIsTheReference) {
  constexpr int64_t kCount = 17;
  const std::vector<int32_t> indices = selection(kTokens, kCount);
  std::vector<float> p(indices.size());
  for (int64_t t = 0; t < kTokens; ++t) {
    const int64_t n = std::min(kCount, t + 1);
    for (int64_t i = 0; i < n; ++i) {  // sums to 1, one of them 0
      const double share =
          n == 1 ? 1 : 2.0 * static_cast<double>(i) / static_cast<double>(n * (n - 1));
      p[static_cast<size_t>(t * kCount + i)] = static_cast<float>(share);
    }
  }
  const std::vector<double> p64 = doubles(p);
  Kl<double> want(kTokens, kHeads, kDim, inputs());
  KernelContext reference(1);
  indexer_kl_sparse<double>(reference, {want.in, indices.data(), p64.data(), kCount});
  for (const char* name : {"simd", "reference"}) {
    SCOPED_TRACE(name);
    KernelContext context(2);
    context.force("indexer_kl_sparse", name);
    Kl<float> got(kTokens, kHeads, kDim, inputs());
    indexer_kl_sparse<float>(context, {got.in, indices.data(), p.data(), kCount});
    expect_same(got, want, kTokens * kHeads + kDim);
  }
}

TEST_P(IndexerKl, HealthIsTheReference) {
  MlaSequence<float> s;
  s.tokens = kTokens;
  s.heads = 2;
  s.nope = 6;
  s.rope = 4;
  s.v_dim = 3;
  const std::vector<std::vector<float>> attention = {random_floats(kTokens * 2 * 10, 4),
                                                     random_floats(kTokens * 2 * 9, 5),
                                                     random_floats(kTokens * 4, 6),
                                                     {}};
  const Dense<float> target(s, attention);
  const Dense<double> exact(s, attention);
  const Kl<double> wide(kTokens, kHeads, kDim, inputs());
  IndexerHealth want;
  KernelContext reference(1);
  indexer_health<double>(reference, {wide.in, exact.in, 9, &want});
  EXPECT_EQ(want.queries, kTokens);
  EXPECT_EQ(want.selecting, kTokens - 9);
  for (const char* name : {"simd", "reference"}) {
    SCOPED_TRACE(name);
    KernelContext context(2);
    context.force("indexer_health", name);
    const Kl<float> narrow(kTokens, kHeads, kDim, inputs());
    IndexerHealth got;
    indexer_health<float>(context, {narrow.in, target.in, 9, &got});
    EXPECT_EQ(got.queries, want.queries);
    EXPECT_EQ(got.selecting, want.selecting);
    // Means over rows, each off by the roundings of its scores; what is chosen is the same, since
    // no two scores of these inputs are nearer than that unless they are equal.
    const double unit = 8 * kUnitF32 * (kTokens * kHeads + kDim + 10) * kTokens;
    for (double IndexerHealth::*field :
         {&IndexerHealth::kl, &IndexerHealth::entropy, &IndexerHealth::recall, &IndexerHealth::mass,
          &IndexerHealth::worst_mass, &IndexerHealth::best_mass, &IndexerHealth::first,
          &IndexerHealth::ties, &IndexerHealth::look_back, &IndexerHealth::window,
          &IndexerHealth::negative}) {
      EXPECT_NEAR(got.*field, want.*field, unit);
    }
  }
}

TEST(IndexerHealthRow, CountsWhatItSays) {
  // Two heads over six positions, k = 2. The mean is best at 1 and 4.
  const float per_head[] = {0.1F, 0.5F, 0.0F, 0.1F, 0.2F, 0.1F,  //
                            0.1F, 0.3F, 0.0F, 0.1F, 0.4F, 0.1F};
  const float mean[] = {0.1F, 0.4F, 0.0F, 0.1F, 0.3F, 0.1F};
  const float score[] = {0, 2, 1, 1, 1, 0}, w[] = {1, -1, 2, 0};
  HealthRow row{per_head, 6, 2, mean, score, 6, 2, w, 4};
  IndexerHealth h = indexer_health_row(row);  // chooses 1 and, the first of three ties, 2
  EXPECT_EQ(h.selecting, 1);
  EXPECT_DOUBLE_EQ(h.recall, 0.5);
  EXPECT_FLOAT_EQ(h.mass, 0.4F);
  EXPECT_FLOAT_EQ(h.best_mass, 0.7F);
  EXPECT_FLOAT_EQ(h.worst_mass, 0.3F);
  EXPECT_DOUBLE_EQ(h.first, 1);
  EXPECT_DOUBLE_EQ(h.ties, 3);
  EXPECT_DOUBLE_EQ(h.look_back, (4 + 3) / 2.0);
  EXPECT_DOUBLE_EQ(h.window, 0);
  EXPECT_DOUBLE_EQ(h.negative, 0.25);
  EXPECT_LT(h.entropy, 1);

  // Scores that are the logarithm of the mean are perfect, equal ones know nothing.
  float best[6], flat[6] = {};
  for (int i = 0; i < 6; ++i) best[i] = mean[i] > 0 ? std::log(mean[i]) : -100.0F;
  row.score = best;
  h = indexer_health_row(row);
  EXPECT_NEAR(h.kl, 0, 1e-6);
  EXPECT_DOUBLE_EQ(h.recall, 1);
  EXPECT_FLOAT_EQ(h.mass, 0.7F);
  row.score = flat;
  h = indexer_health_row(row);
  EXPECT_NEAR(h.entropy, 1, 1e-12);
  EXPECT_DOUBLE_EQ(h.ties, 6);
  row.n = 2;
  EXPECT_EQ(indexer_health_row(row).selecting, 0) << "nothing to choose";
}

INSTANTIATE_TEST_SUITE_P(WithAndWithoutTies, IndexerKl, testing::Bool());

TEST(CrossEntropyBackward, NoTargetNoGradient) {
  std::vector<float> logits = {1, 2, 3, 4, 5, 6};
  const int32_t targets[] = {-1, 2};
  double loss[2];
  KernelContext context(1);
  cross_entropy_backward<float>(context, {logits.data(), targets, 2, 3, 2.0, loss});
  EXPECT_EQ(loss[0], 0);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(logits[i], 0);
  const double sum = std::exp(-2.0) + std::exp(-1.0) + 1;
  EXPECT_NEAR(loss[1], std::log(sum), 4 * kUnitF32);
  EXPECT_NEAR(logits[5], 2 * (1 / sum - 1), 8 * kUnitF32);
}

// What a CPU never needs but the operations offer: their outputs in bf16 are those in float32,
// rounded once.
TEST(Bf16Outputs, AreTheOthersRounded) {
  const int64_t rows = 7, width = 5, n = rows * width, chosen = 2, experts = 3;
  KernelContext context(2);
  const auto same = [](const std::vector<uint16_t>& bits, const std::vector<float>& x,
                       const char* what) {
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(bits[i], float_to_bf16(x[i])) << what << i;
  };
  const std::vector<float> x = random_floats(n, 1), y = random_floats(n, 2);
  const std::vector<float> dy = random_floats(n, 3), w = random_floats(width, 4);
  std::vector<float> a(x), b(x), c(x), d(x);
  std::vector<uint16_t> bits(x.size()), both(2 * x.size());
  rms_norm(context, {c.data(), width, nullptr, w.data(), rows, width, 1e-6F, a.data(), width, false,
                     bits.data()});
  same(bits, a, "rms_norm ");
  swiglu(context, {x.data(), y.data(), rows, width, a.data()});
  swiglu(context, {x.data(), y.data(), rows, width, nullptr, bits.data()});
  same(bits, a, "swiglu ");
  swiglu_backward<float>(context, {x.data(), y.data(), dy.data(), rows, width, a.data(), b.data()});
  swiglu_backward<float>(context, {x.data(), y.data(), dy.data(), rows, width, nullptr, nullptr,
                                   both.data(), both.data() + width, 2 * width});
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t at = i / width * 2 * width + i % width;
    ASSERT_EQ(both[at], float_to_bf16(a[i]));
    ASSERT_EQ(both[at + width], float_to_bf16(b[i]));
  }
  std::vector<int32_t> ids, row_of(rows * chosen), targets;
  for (int32_t i = 0; i < rows * chosen; ++i) ids.push_back(i * 5 % experts);
  std::vector<int64_t> offsets(experts + 1);
  std::vector<float> sorted(n * chosen), drows(n * chosen),
      weights(random_floats(rows * chosen, 5));
  std::vector<float> dweights(weights), again(weights);
  std::vector<uint16_t> pairs(sorted.size());
  moe_permute(context, {ids.data(), rows, chosen, experts, x.data(), width, row_of.data(),
                        offsets.data(), sorted.data()});
  moe_permute(context, {ids.data(), rows, chosen, experts, x.data(), width, row_of.data(),
                        offsets.data(), nullptr, pairs.data()});
  same(pairs, sorted, "moe_permute ");
  moe_combine_backward<float>(context, {sorted.data(), row_of.data(), weights.data(), dy.data(),
                                        rows, chosen, width, drows.data(), dweights.data()});
  moe_combine_backward<float>(context, {sorted.data(), row_of.data(), weights.data(), dy.data(),
                                        rows, chosen, width, nullptr, again.data(), pairs.data()});
  same(pairs, drows, "moe_combine_backward ");
  EXPECT_EQ(again, dweights);
  for (int32_t i = 0; i < rows; ++i) targets.push_back(i == 3 ? -1 : i % width);
  std::vector<double> loss(rows), other(rows);
  std::vector<float> logits(x), same_logits(x);
  cross_entropy_backward<float>(context,
                                {logits.data(), targets.data(), rows, width, 0.5, loss.data()});
  cross_entropy_backward<float>(
      context, {same_logits.data(), targets.data(), rows, width, 0.5, other.data(), bits.data()});
  same(bits, logits, "cross_entropy_backward ");
  EXPECT_EQ(other, loss);
}

TEST(RmsNormBackward, OverwritesOrAdds) {
  const int64_t rows = 4, width = 6, n = rows * width;
  KernelContext context(2);
  const std::vector<float> x = random_floats(n, 1), w = random_floats(width, 2);
  const std::vector<float> dy = random_floats(n, 3);
  std::vector<float> added(n), written = random_floats(n, 4), dw(width), dw2(width);
  rms_norm_backward<float>(context, {x.data(), width, w.data(), dy.data(), rows, width, 1e-6F,
                                     added.data(), width, dw.data()});
  rms_norm_backward<float>(context, {x.data(), width, w.data(), dy.data(), rows, width, 1e-6F,
                                     written.data(), width, dw2.data(), true});
  EXPECT_EQ(written, added);
  EXPECT_EQ(dw2, dw);
}

TEST(Optimizer, ClipsSkipsAndKeepsGroupsApart) {
  const ModelConfig config = tiny_config();
  const ParameterTable table(config);
  const std::vector<float> start = tiny_values(table);
  std::vector<float> weights = start, gradients(start.size(), 2.0F);
  KernelContext context(2);
  Optimizer optimizer(context, table);
  AdamwSettings settings;
  settings.learning_rate = 0.01;
  settings.decay = 0;
  const ParameterTable::Range indexer = table.range(ParameterGroup::kIndexer);
  const auto step = [&] {
    const double norm =
        std::sqrt(sum_of_squares(context, gradients.data() + indexer.begin, indexer.size()));
    optimizer.step(context, ParameterGroup::kIndexer, settings, norm,
                   weights.data() + indexer.begin, gradients.data() + indexer.begin);
    return norm;
  };
  const double norm = step();
  EXPECT_NEAR(norm, 2 * std::sqrt(static_cast<double>(indexer.size())), 1e-9 * norm);
  const auto clipped = static_cast<float>(0.1 * 2 / norm);  // (1 - beta1) g after the clip to 1
  for (int64_t i = 0; i < table.size(); ++i) {
    const auto at = static_cast<size_t>(i);
    const bool own = i >= indexer.begin && i < indexer.end;
    ASSERT_EQ(weights[at] != start[at], own) << i;
    if (own) {
      const auto own_at = static_cast<size_t>(i - indexer.begin);
      ASSERT_NEAR(optimizer.first(ParameterGroup::kIndexer).data()[own_at], clipped,
                  4 * kUnitF32 * clipped);
    }
  }
  const std::vector<float> before = weights;
  gradients[static_cast<size_t>(indexer.begin)] = NAN;
  EXPECT_FALSE(std::isfinite(step()));
  EXPECT_EQ(weights, before);
  EXPECT_EQ(optimizer.clock(ParameterGroup::kIndexer), 1);
  EXPECT_EQ(optimizer.clock(ParameterGroup::kModel), 0);
}

TEST(RouterBias, MovesTowardsTheMean) {
  const ModelConfig config = tiny_config();
  const ParameterTable table(config);
  std::vector<float> weights(static_cast<size_t>(table.size()));
  KernelContext context(1);
  update_router_biases(context, table, {{}, {1, 2, 3, 2, 2, 2}}, 0.5, weights.data());
  const float* bias = weights.data() + table.layers()[1].router_bias;
  const float want[] = {0.5F, 0, -0.5F, 0, 0, 0};
  for (int e = 0; e < 6; ++e) EXPECT_EQ(bias[e], want[e]) << e;
}

// What has no counterpart in inference: small gradients, nothing, and what is not finite.
TEST(Fp8Round, KeepsSmallGradientsAndWhatIsNotFinite) {
  KernelContext context(1);
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const auto rounded = [&](std::vector<float> x, Fp8Blocks blocks) {
    std::vector<float> y(x.size(), 7);
    const auto n = static_cast<int64_t>(x.size());
    const bool down = blocks == Fp8Blocks::kDown;
    fp8_round<float>(context, {.blocks = blocks,
                               .x = x.data(),
                               .x_stride = down ? 1 : n,
                               .rows = down ? n : 1,
                               .width = down ? 1 : n,
                               .y = y.data()});
    return y;
  };
  for (const Fp8Blocks blocks : {Fp8Blocks::kAcross, Fp8Blocks::kDown}) {
    // 448 values of scale 2^-40 and nothing lost: 17 lies between the neighbours 16 and 18.
    const std::vector<float> small = {448 * 0x1p-40F, 17 * 0x1p-40F, -0x1p-49F, 0};
    EXPECT_EQ(rounded(small, blocks),
              (std::vector<float>{448 * 0x1p-40F, 16 * 0x1p-40F, -0x1p-49F, 0}));
    EXPECT_EQ(rounded({0, 0, 0}, blocks), std::vector<float>(3));
    EXPECT_EQ(rounded({0x1p-120F, 0}, blocks), std::vector<float>(2)) << "below the least scale";
    for (const float bad : {kInf, -kInf, std::nanf("")}) {
      const std::vector<float> y = rounded({1, bad, 2}, blocks);
      EXPECT_FALSE(std::isfinite(y[1]));
    }
    // The second block has a scale of its own.
    std::vector<float> two(130, 1);
    two[128] = 0x1p-20F;
    two[129] = 0x1.08p-20F;  // in the middle, to even
    const std::vector<float> y = rounded(two, blocks);
    EXPECT_EQ(y[127], 1);
    EXPECT_EQ(y[128], 0x1p-20F);
    EXPECT_EQ(y[129], 0x1p-20F);
  }
  // A weight has the floor of block_quant.
  const std::vector<float> tiny(4, 1e-9F);
  std::vector<float> y(4), want(4);
  std::vector<uint8_t> codes(4);
  float scale = 0;
  block_quant(tiny.data(), 2, 2, true, codes.data(), &scale);
  for (size_t i = 0; i < 4; ++i) want[i] = e4m3_to_float(codes[i]) * scale;
  fp8_round<float>(context, {.blocks = Fp8Blocks::kSquare,
                             .x = tiny.data(),
                             .x_stride = 2,
                             .rows = 2,
                             .width = 2,
                             .y = y.data()});
  EXPECT_EQ(y, want);
}

}  // namespace
}  // namespace tamis
