#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/test_weight.h"
#include "kernels/token_ops/token_ops.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;

class TokenOpsCuda : public CudaTest {
 protected:
  // Everything a token can meet, for `tokens` of them.
  struct Values {
    Values(KernelContext& context, int64_t n)
        : count(n),
          table(context, random_floats(kIds * kWidth, 1)),
          norm(context, random_floats(kWidth, 2)),
          bias(context, random_floats(kWidth, 3)),
          cosines(context, random_floats(kIds * kRope / 2, 4)),
          delta(context, random_floats(n * kWidth, 5)),
          rows(context, random_floats(n * kChosen * kWidth, 6)),
          weights(context, random_floats(n * kChosen, 7)),
          query(context, random_floats(n * kHeads * kWidth, 8)),
          head_weights(context, random_floats(n * kHeads, 9)),
          kv(context, random_floats(n * (kLatent + kRope), 10)),
          x(context, n * kWidth),
          y(context, n * kWidth),
          cos(context, n * kRope / 2),
          latent(context, n * kLatent),
          cache(context, kPages * page_bytes()),
          ids(context, numbers(n, 3, kIds)),
          position(context, numbers(n, 1, 1000)),
          sequence(context, numbers(n, 0, 1)),
          row_of(context, numbers(n * kChosen, 1, n * kChosen)),
          pages(context, numbers(kPages, 1, kPages)),
          failed(context, 1),
          flags(context, std::vector<uint8_t>(static_cast<size_t>(n))),
          sequences(context, {KvSequence{pages.data()}}) {}

    static std::vector<int32_t> numbers(int64_t n, int64_t step, int64_t below) {
      std::vector<int32_t> v;
      for (int64_t i = 0; i < n; ++i) v.push_back(static_cast<int32_t>(i * step % below));
      return v;
    }
    static KvLayout layout() { return {kLatent, kRope, kWidth, KvFormat::kFP8, KvFormat::kBF16}; }
    static int64_t page_bytes() { return (layout().page_bytes() + 15) / 16 * 16; }
    KvAppendArgs entry() const {
      KvAppendArgs a;
      a.kv = {layout(), cache.data(), page_bytes()};
      a.tokens = {count, sequence.data(), position.data(), sequences.data()};
      return a;
    }
    RopeArgs rope(float* at, int64_t token_stride, int64_t head_stride, int64_t heads) const {
      return {at,    token_stride,           head_stride, count,     heads,
              kRope, RopeLayout::kHalfSplit, cos.data(),  cos.data()};
    }

    // Thirteen steps, more than one launch takes, over four lanes.
    std::vector<TokenStep> steps() const {
      Weight w;
      w.dtype = DType::kF32;
      w.data = reinterpret_cast<const std::byte*>(table.data());
      w.rows = kIds;
      w.cols = kWidth;
      w.row_bytes = kWidth * 4;
      KvAppendArgs latent_entry = entry(), key_entry = entry();
      latent_entry.c_kv = latent.data();
      latent_entry.k_pe = kv.data() + kLatent;
      latent_entry.k_pe_stride = kLatent + kRope;
      key_entry.index_key = y.data();
      return {
          {EmbeddingArgs{w, 0, ids.data(), count, x.data()}, 0},
          {GatherRowsArgs{cosines.data(), ids.data(), count, kRope / 2, cos.data()}, 1},
          {MoeCombineArgs{rows.data(), row_of.data(), weights.data(), count, kChosen, kWidth,
                          nullptr, delta.data()},
           0},
          {RmsNormArgs{x.data(), kWidth, delta.data(), norm.data(), count, kWidth, 1e-6f, y.data(),
                       kWidth},
           0},
          {rope(kv.data() + kLatent, kLatent + kRope, kRope, 1), 1},
          {RmsNormArgs{kv.data(), kLatent + kRope, nullptr, norm.data(), count, kLatent, 1e-6f,
                       latent.data(), kLatent},
           2},
          {IndexQueryArgs{query.data(), head_weights.data(), count * kHeads, kWidth, 0.5f, 0.3f,
                          true, false},
           3},
          {LayerNormArgs{y.data(), kWidth, norm.data(), bias.data(), count, kWidth, 1e-6f, y.data(),
                         kWidth},
           0},
          {RoundRowsArgs{query.data(), count * kHeads, kWidth - 3, kWidth}, 3},
          {key_entry, 0},
          {CheckFiniteArgs{x.data(), count, kWidth, nullptr, sequence.data(), 5, failed.data()}, 2},
          {latent_entry, 1},  // in the next launch: after lane 2
          {CheckFlagsArgs{flags.data(), count, sequence.data(), 6, failed.data()}, 3},
      };
    }
    std::vector<Floats> results() const {
      return {delta.read(), query.read(), head_weights.read(), kv.read(),
              x.read(),     y.read(),     cos.read(),          latent.read()};
    }

    static constexpr int64_t kIds = 11, kWidth = 128, kLatent = 96, kRope = 32, kHeads = 3;
    static constexpr int64_t kChosen = 2, kPages = 16;
    int64_t count;
    Device<float> table, norm, bias, cosines, delta, rows, weights, query, head_weights, kv;
    Device<float> x, y, cos, latent;
    Device<std::byte> cache;
    Device<int32_t> ids, position, sequence, row_of, pages, failed;
    Device<uint8_t> flags;
    Device<KvSequence> sequences;
  };
};

TEST_F(TokenOpsCuda, HasTheBitsOfTheOperationsOneByOne) {
  for (const int64_t n : {1, 2, 5, 300}) {
    const Values got(context(), n), want(context(), n);
    token_ops(context(), n, got.steps());
    for (const TokenStep& step : want.steps()) token_op_alone(context(), step.op);
    const std::vector<Floats> a = got.results(), b = want.results();
    for (size_t i = 0; i < a.size(); ++i) {
      ASSERT_EQ(std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)), 0) << n << i;
      for (const float v : a[i]) ASSERT_FALSE(std::isnan(v)) << n << " " << i;
    }
    ASSERT_EQ(got.cache.read(), want.cache.read());
    ASSERT_EQ(got.failed.read(), std::vector<int32_t>{-1});
  }
}

// A token's cache entry by three steps that are one on the device.
TEST_F(TokenOpsCuda, MakesTheEntryAtOnce) {
  struct Shape {
    int64_t latent, rope, key, turned;
  };
  for (const Shape& s :
       {Shape{512, 64, 128, 64}, Shape{96, 6, 40, 4}, Shape{1000, 512, 256, 256}}) {
    for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFP8}) {
      for (const RopeLayout layout : {RopeLayout::kInterleaved, RopeLayout::kHalfSplit}) {
        const int64_t n = format == KvFormat::kF32 ? 1 : 70, width = s.latent + s.rope;
        const KvLayout kv{s.latent, s.rope, s.key, format, format};
        const int64_t page = (kv.page_bytes() + 15) / 16 * 16;
        std::vector<std::vector<uint8_t>> caches;
        std::vector<Floats> results;
        const Values v(context(), n);
        const Device<float> norm(context(), random_floats(s.latent, 1)),
            key_norm(context(), random_floats(s.key, 2)), bias(context(), random_floats(s.key, 3)),
            cos(context(), random_floats(n * s.rope / 2, 4)),
            sin(context(), random_floats(n * s.rope / 2, 5)),
            key_cos(context(), random_floats(n * s.turned / 2, 6)),
            key_sin(context(), random_floats(n * s.turned / 2, 7));
        for (const bool joined : {false, true}) {
          const Device<float> x(context(), random_floats(n * width, 8)),
              key(context(), random_floats(n * s.key, 9)), latent(context(), n * s.latent);
          const Device<uint8_t> cache(context(), Values::kPages * page);
          KvAppendArgs entry[2];
          for (KvAppendArgs& e : entry) {
            e.kv = {kv, reinterpret_cast<std::byte*>(cache.data()), page};
            e.tokens = {n, v.sequence.data(), v.position.data(), v.sequences.data()};
          }
          entry[0].c_kv = latent.data();
          entry[0].k_pe = x.data() + s.latent;
          entry[0].k_pe_stride = width;
          entry[1].index_key = key.data();
          const std::vector<TokenStep> steps{
              {RmsNormArgs{x.data(), width, nullptr, norm.data(), n, s.latent, 1e-6F, latent.data(),
                           s.latent},
               1},
              {RopeArgs{x.data() + s.latent, width, s.rope, n, 1, s.rope, layout, cos.data(),
                        sin.data()},
               1},
              {entry[0], 1},
              {LayerNormArgs{key.data(), s.key, key_norm.data(), bias.data(), n, s.key, 1e-6F,
                             key.data(), s.key},
               2},
              {RopeArgs{key.data(), s.key, s.key, n, 1, s.turned, layout, key_cos.data(),
                        key_sin.data()},
               2},
              {entry[1], 2}};
          if (joined) {
            token_ops(context(), n, steps);
          } else {
            for (const TokenStep& step : steps) token_op_alone(context(), step.op);
          }
          caches.push_back(cache.read());
          for (const Device<float>* d : {&x, &key, &latent}) results.push_back(d->read());
        }
        EXPECT_EQ(caches[0], caches[1]) << s.latent;
        for (size_t i = 0; i < 3; ++i)
          EXPECT_EQ(results[i], results[i + 3]) << s.latent << " " << i;
      }
    }
  }
}

TEST_F(TokenOpsCuda, MarksOnce) {
  Device<float> x(context(), Floats{1, 2, 3, std::numeric_limits<float>::infinity()});
  Device<uint8_t> flags(context(), std::vector<uint8_t>{0, 1});
  Device<int32_t> sequence(context(), std::vector<int32_t>{0, 1}), failed(context(), 2);
  const TokenStep steps[] = {
      {CheckFiniteArgs{x.data(), 2, 2, nullptr, sequence.data(), 7, failed.data()}, 0},
      {CheckFlagsArgs{flags.data(), 2, sequence.data(), 8, failed.data()}, 0}};
  token_ops(context(), 2, steps);
  EXPECT_EQ(failed.read(), (std::vector<int32_t>{-1, 7}));
  token_ops(context(), 0, steps);
  token_ops(context(), 2, {});
}

}  // namespace
}  // namespace tamis
