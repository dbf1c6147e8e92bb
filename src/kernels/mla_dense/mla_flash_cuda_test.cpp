// mla_dense in training without scores in memory against double in plain loops.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <random>

#include "kernels/indexer_select/mask_selection.h"
#include "kernels/mla_dense/mla_bf16.h"
#include "kernels/mla_dense/mla_dense_backward_impl.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"
#include "support/cuda_device.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

struct Shape {
  int64_t tokens, heads, nope, rope, v_dim;
};

Doubles doubles(const Floats& x) { return {x.begin(), x.end()}; }

// Up to k positions of each token's sequence up to its own, of tiles in turn with its own, so that
// whole tiles are left out; as rows of the batch.
std::vector<int32_t> select_positions(const std::vector<int32_t>& position, int64_t k) {
  std::mt19937 random(7);
  std::vector<int32_t> indices(position.size() * static_cast<size_t>(k), -1);
  for (size_t t = 0; t < position.size(); ++t) {
    if (position[t] == 0) random.seed(7);  // a sequence selects in a batch what it does alone
    std::vector<int32_t> rows;
    for (int32_t s = 0; s <= position[t]; ++s) {
      if (s / 64 % 2 == position[t] / 64 % 2) {
        rows.push_back(static_cast<int32_t>(t) - position[t] + s);
      }
    }
    std::sample(rows.begin(), rows.end(), indices.begin() + static_cast<int64_t>(t) * k, k, random);
  }
  return indices;
}

// A mask of such selections in memory of a context's kind, of the sequences that `position` counts.
class Mask {
 public:
  Mask(KernelContext& context, const std::vector<int32_t>& position, int64_t k) {
    const auto n = static_cast<int64_t>(position.size());
    const int64_t longest = n == 0 ? 0 : 1 + *std::max_element(position.begin(), position.end());
    const int64_t words = selection_words(longest), all = n * selection_words_in_all(longest);
    const std::vector<int32_t> indices = select_positions(position, k);
    host_.resize(static_cast<size_t>(all));
    KernelContext host(1, Backend::kReference);
    mask_selection(host,
                   {indices.data(), n, k, {position.data(), longest}, host_.data(), n, words});
    device_ = std::make_unique<Device<uint64_t>>(context, host_);
    on_host = {host_.data(), n, words};
    on_device = {device_->data(), n, words};
    const Device<int32_t> there(context, position), rows(context, indices);
    const Device<uint64_t> bits(context, all);
    mask_selection(context, {rows.data(), n, k, {there.data(), longest}, bits.data(), n, words});
    std::vector<uint64_t> got = bits.read();
    for (int64_t w = words; w < all / std::max<int64_t>(n, 1); ++w) {  // no tile begins there
      for (int64_t t = 0; t < n; ++t) {
        if (position[static_cast<size_t>(t)] % 64 != 0) got[static_cast<size_t>(w * n + t)] = 0;
      }
    }
    EXPECT_EQ(got, host_);
  }
  SelectionMask on_host, on_device;

 private:
  std::vector<uint64_t> host_;
  std::unique_ptr<Device<uint64_t>> device_;
};

std::vector<int32_t> positions_of(std::span<const int64_t> begins) {
  std::vector<int32_t> position;
  for (size_t i = 0; i + 1 < begins.size(); ++i) {
    for (int64_t t = begins[i]; t < begins[i + 1]; ++t) {
      position.push_back(static_cast<int32_t>(t - begins[i]));
    }
  }
  return position;
}

// The largest norm of rows of `width` values.
double largest_norm(const Floats& x, int64_t width) {
  double most = 0;
  if (width == 0) return 0;
  for (size_t i = 0; i + static_cast<size_t>(width) <= x.size(); i += static_cast<size_t>(width)) {
    most = std::max(most, norm2(&x[i], width));
  }
  return most;
}

class MlaFlashCuda : public CudaTest {
 protected:
  struct Result {
    Floats out, dq, dkv, dk_pe;
  };

  Result run(const Shape& s, const Floats& q, const Floats& kv, const Floats& k_pe,
             const Floats& d_out, float scale, const SelectionMask& mask = {}) {
    Device<float> gq(context(), q), gkv(context(), kv), gpe(context(), k_pe);
    Device<float> gd(context(), d_out), out(context(), static_cast<int64_t>(d_out.size()));
    Device<float> dq(context(), gq.size()), dkv(context(), gkv.size()), dpe(context(), gpe.size());
    const MlaSequence<float> in{gq.data(), gkv.data(), gpe.data(), s.tokens, s.heads,
                                s.nope,    s.rope,     s.v_dim,    scale};
    mla_dense_train_flash(context(), {in, out.data(), {}, nullptr, mask});
    mla_dense_backward_flash(
        context(), {in, gd.data(), dq.data(), dkv.data(), dpe.data(), {}, nullptr, nullptr, mask});
    return {out.read(), dq.read(), dkv.read(), dpe.read()};
  }

  static void expect_near(const Floats& got, const Doubles& want, double tolerance,
                          const char* what) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], tolerance) << what << i;
  }

  // product: the error of a product of two factors; k: keys that a token selects, 0 for all.
  void check(const Shape& s, double product = 3.01 * 0x1p-18, int64_t k = 0) {
    if (skip_case()) return;
    std::optional<Mask> selected;
    if (k > 0) selected.emplace(context(), positions_of(std::vector<int64_t>{0, s.tokens}), k);
    const SelectionMask mask = selected ? selected->on_host : SelectionMask();
    const SelectionMask there = selected ? selected->on_device : SelectionMask();
    const int64_t qk = s.nope + s.rope, rows = s.tokens * s.heads;
    const Floats q = random_floats(rows * qk, 1), kv = random_floats(rows * (s.nope + s.v_dim), 2);
    const Floats k_pe = random_floats(s.tokens * s.rope, 3),
                 d_out = random_floats(rows * s.v_dim, 4);
    const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(qk)));
    const Result got = run(s, q, kv, k_pe, d_out, scale, there);
    const Result again = run(s, q, kv, k_pe, d_out, scale, there);
    const Doubles q64 = doubles(q), kv64 = doubles(kv), pe64 = doubles(k_pe), d64 = doubles(d_out);
    const MlaSequence<double> in{q64.data(), kv64.data(), pe64.data(), s.tokens, s.heads,
                                 s.nope,     s.rope,      s.v_dim,     scale};
    Doubles out(d64.size()), dq(q64.size()), dkv(kv64.size()), dk_pe(pe64.size());
    for (int64_t t = 0; t < s.tokens; ++t) {
      for (int64_t h = 0; h < s.heads; ++h) {
        const std::vector<double> p = mla_probabilities(in, t, h, mask);
        for (int64_t i = 0; i < s.v_dim; ++i) {
          for (int64_t key = 0; key <= t; ++key) {
            out[static_cast<size_t>((t * s.heads + h) * s.v_dim + i)] +=
                p[static_cast<size_t>(key)] *
                kv64[static_cast<size_t>((key * s.heads + h) * (s.nope + s.v_dim) + s.nope + i)];
          }
        }
      }
    }
    mla_dense_backward_reference<double>(
        reference(),
        {in, d64.data(), dq.data(), dkv.data(), dk_pe.data(), {}, nullptr, nullptr, mask});
    // A product is off by `product` of its factors' norms, sums by their length's roundings; a
    // probability by twice what its score is, and each operation after it as much again: 8 of them.
    const double q_norm = largest_norm(q, qk);
    const double k_norm =
        std::hypot(largest_norm(kv, s.nope + s.v_dim), largest_norm(k_pe, s.rope));
    const double v_norm = largest_norm(kv, s.nope + s.v_dim), d_norm = largest_norm(d_out, s.v_dim);
    const double each = product + static_cast<double>(s.tokens + qk) * kUnitF32;
    const double unit = 8 * each * (1 + scale * q_norm * k_norm);
    const auto tokens = static_cast<double>(s.tokens), heads = static_cast<double>(s.heads);
    expect_near(got.out, out, unit * v_norm, "out ");
    expect_near(got.dq, dq, unit * scale * d_norm * v_norm * k_norm, "dq ");
    const double ds = unit * scale * d_norm * v_norm * q_norm;
    // Column sums of probabilities are at most the tokens.
    expect_near(got.dkv, dkv, tokens * std::max(ds, unit * d_norm), "dkv ");
    expect_near(got.dk_pe, dk_pe, tokens * heads * ds, "dk_pe ");
    for (const auto part : {&Result::out, &Result::dq, &Result::dkv, &Result::dk_pe}) {
      EXPECT_EQ(got.*part, again.*part) << s.tokens << "x" << s.heads << "x" << s.nope;
    }
  }

  void batch_is_its_sequences(int64_t k) {
    const Shape s{1500, 2, 32, 16, 32};
    const int64_t qk = s.nope + s.rope, kv_row = s.heads * (s.nope + s.v_dim);
    const int64_t o_row = s.heads * s.v_dim;
    const Floats q = random_floats(s.tokens * s.heads * qk, 1);
    const Floats kv = random_floats(s.tokens * kv_row, 2);
    const Floats k_pe = random_floats(s.tokens * s.rope, 3);
    const Floats d_out = random_floats(s.tokens * o_row, 4);
    std::vector<int64_t> begins = {0, 130, 131, 131, 400, 464};
    while (begins.back() + 2 < s.tokens) begins.push_back(begins.back() + 2);
    begins.push_back(s.tokens);
    Device<float> gq(context(), q), gkv(context(), kv), gpe(context(), k_pe), gd(context(), d_out);
    Device<float> out(context(), gd.size()), log_sum(context(), s.tokens * s.heads);
    Device<float> dq(context(), gq.size()), dkv(context(), gkv.size()), dpe(context(), gpe.size());
    const MlaSequence<float> in{gq.data(), gkv.data(), gpe.data(), s.tokens, s.heads,
                                s.nope,    s.rope,     s.v_dim,    0.2F};
    std::optional<Mask> selected;
    if (k > 0) selected.emplace(context(), positions_of(begins), k);
    const SelectionMask mask = selected ? selected->on_device : SelectionMask();
    mla_dense_train_flash(context(), {in, out.data(), begins, log_sum.data(), mask});
    mla_dense_backward_flash(context(), {in, gd.data(), dq.data(), dkv.data(), dpe.data(), begins,
                                         out.data(), log_sum.data(), mask});
    const Result batch{out.read(), dq.read(), dkv.read(), dpe.read()};
    const auto part = [](const Floats& x, int64_t first, int64_t count, int64_t row) {
      return Floats(x.begin() + first * row, x.begin() + (first + count) * row);
    };
    for (size_t i = 0; i + 1 < begins.size(); i += i < 8 ? 1 : 97) {
      const int64_t first = begins[i], count = begins[i + 1] - first;
      if (count == 0) continue;
      Shape one = s;
      one.tokens = count;
      std::optional<Mask> own;
      if (k > 0) own.emplace(context(), positions_of(std::vector<int64_t>{0, count}), k);
      const Result alone =
          run(one, part(q, first, count, s.heads * qk), part(kv, first, count, kv_row),
              part(k_pe, first, count, s.rope), part(d_out, first, count, o_row), 0.2F,
              own ? own->on_device : SelectionMask());
      EXPECT_EQ(part(batch.out, first, count, o_row), alone.out) << i;
      EXPECT_EQ(part(batch.dq, first, count, s.heads * qk), alone.dq) << i;
      EXPECT_EQ(part(batch.dkv, first, count, kv_row), alone.dkv) << i;
      EXPECT_EQ(part(batch.dk_pe, first, count, s.rope), alone.dk_pe) << i;
    }
  }
};

// Arrays of bf16, as the products beside attention leave them, have the bits of float32 ones that
// are rounded around it.
TEST_F(MlaFlashCuda, Bf16ArraysHaveTheBitsOfRoundedOnes) {
  context().force("matmul", "cuda_bf16");
  for (const Shape& s : {Shape{1, 1, 8, 8, 8}, Shape{200, 2, 32, 16, 32}, Shape{130, 3, 64, 32, 64},
                         Shape{150, 2, 128, 64, 128}, Shape{97, 2, 40, 24, 72}}) {
    if (skip_case()) continue;
    const int64_t qk = s.nope + s.rope, half = s.rope / 2, rows = s.tokens * s.heads;
    const int64_t stride = s.rope + 8;  // of k_pe and its gradient
    const auto of_bf16 = [](Floats x, std::vector<uint16_t>& bits) {
      for (float& v : x) bits.push_back(float_to_bf16(v)), v = round_to_bf16(v);
      return x;
    };
    std::vector<uint16_t> q16, kv16, d16;
    const Floats q = of_bf16(random_floats(rows * qk, 1), q16);
    const Floats kv = of_bf16(random_floats(rows * (s.nope + s.v_dim), 2), kv16);
    const Floats d_out = of_bf16(random_floats(rows * s.v_dim, 4), d16);
    const Floats wide = random_floats(s.tokens * stride, 3);
    const Floats cos = random_floats(s.tokens * half, 5), sin = random_floats(s.tokens * half, 6);
    Floats k_pe;
    for (int64_t i = 0; i < s.tokens * half; ++i) {
      const float* x = &wide[static_cast<size_t>(i / half * stride + i % half * 2)];
      const float c = cos[static_cast<size_t>(i)], d = sin[static_cast<size_t>(i)];
      k_pe.push_back(x[0] * c - x[1] * d);
      k_pe.push_back(x[1] * c + x[0] * d);
    }
    const std::vector<int64_t> begins = {0, s.tokens / 3, s.tokens};
    Device<float> gq(context(), q), gkv(context(), kv), gpe(context(), k_pe), gd(context(), d_out);
    Device<float> out(context(), gd.size()), sums(context(), rows), dq(context(), gq.size());
    Device<float> dkv(context(), gkv.size()), dpe(context(), gpe.size());
    const MlaSequence<float> in{gq.data(), gkv.data(), gpe.data(), s.tokens, s.heads,
                                s.nope,    s.rope,     s.v_dim,    0.2F};
    mla_dense_train_flash(context(), {in, out.data(), begins, sums.data(), {}});
    std::vector<uint16_t> o16;
    const Floats o = of_bf16(out.read(), o16);
    const Device<float> rounded_out(context(), o);
    mla_dense_backward_flash(context(), {in,
                                         gd.data(),
                                         dq.data(),
                                         dkv.data(),
                                         dpe.data(),
                                         begins,
                                         rounded_out.data(),
                                         sums.data(),
                                         {}});

    const std::vector<uint16_t> none(static_cast<size_t>(s.tokens * stride), 0xFFFF);
    Device<uint16_t> bq(context(), q16), bkv(context(), kv16), bd(context(), d16);
    Device<uint16_t> bo(context(), bd.size()), bpe(context(), s.tokens * s.rope);
    Device<uint16_t> bdq(context(), bq.size()), bdkv(context(), bkv.size()), bdpe(context(), none);
    Device<float> gwide(context(), wide), gcos(context(), cos), gsin(context(), sin);
    Device<float> log_sum(context(), rows);
    const MlaBf16Sequence there{bq.data(), bkv.data(), s.tokens, s.heads,
                                s.nope,    s.rope,     s.v_dim,  0.2F};
    ASSERT_TRUE(mla_takes_bf16(context(), there));
    mla_train_bf16(context(), {there, begins, gwide.data(), stride, gcos.data(), gsin.data(),
                               bpe.data(), bo.data(), log_sum.data()});
    EXPECT_EQ(bo.read(), o16);
    EXPECT_EQ(log_sum.read(), sums.read());
    mla_backward_bf16(context(),
                      {there, begins, bpe.data(), bo.data(), bd.data(), log_sum.data(), gcos.data(),
                       gsin.data(), bdq.data(), bdkv.data(), bdpe.data(), stride});
    std::vector<uint16_t> want;
    of_bf16(dkv.read(), want);
    EXPECT_EQ(bdkv.read(), want) << s.tokens;
    Floats turned = dq.read(), keys = dpe.read();
    const auto turn_back = [](float* x, float c, float d) {
      const float first = x[0] * c - x[1] * -d;
      x[1] = x[1] * c + x[0] * -d;
      x[0] = first;
    };
    for (int64_t i = 0; i < s.tokens * half; ++i) {
      const float c = cos[static_cast<size_t>(i)], d = sin[static_cast<size_t>(i)];
      turn_back(&keys[static_cast<size_t>(2 * i)], c, d);
      for (int64_t h = 0; h < s.heads; ++h) {
        const int64_t at = (i / half * s.heads + h) * qk + s.nope + i % half * 2;
        turn_back(&turned[static_cast<size_t>(at)], c, d);
      }
    }
    want.clear();
    of_bf16(turned, want);
    EXPECT_EQ(bdq.read(), want) << s.tokens;
    const std::vector<uint16_t> got = bdpe.read();
    for (int64_t i = 0; i < s.tokens * stride; ++i) {
      const bool own = i % stride < s.rope;
      const auto at = static_cast<size_t>(i / stride * s.rope + i % stride);
      ASSERT_EQ(got[static_cast<size_t>(i)], own ? float_to_bf16(keys[at]) : 0xFFFF)
          << s.tokens << " " << i;
    }
  }
}

TEST_F(MlaFlashCuda, IsTheReference) {
  for (const int64_t tokens : {1, 2, 31, 63, 64, 65, 150}) {
    check({tokens, 3, 5, 4, 6});
    check({tokens, 2, 32, 16, 32});
  }
  for (const int64_t tokens : {1, 33, 130}) {
    check({tokens, 2, 64, 32, 64});
    check({tokens, 1, 65, 6, 33});
    check({tokens, 2, 128, 64, 128});
    check({tokens, 1, 100, 0, 70});
  }
}

// Factors rounded to bf16: two roundings of at most 2^-9.
TEST_F(MlaFlashCuda, IsTheReferenceInBf16) {
  context().force("matmul", "cuda_bf16");
  for (const int64_t tokens : {1, 2, 31, 64, 65, 150}) {
    check({tokens, 3, 5, 4, 6}, 2.01 * 0x1p-9);
    check({tokens, 2, 32, 16, 32}, 2.01 * 0x1p-9);
  }
  for (const int64_t tokens : {1, 33, 130, 200}) {
    check({tokens, 2, 64, 32, 64}, 2.01 * 0x1p-9);
    check({tokens, 1, 65, 6, 33}, 2.01 * 0x1p-9);
    check({tokens, 2, 128, 64, 128}, 2.01 * 0x1p-9);
    check({tokens, 1, 100, 0, 70}, 2.01 * 0x1p-9);
  }
}

// Sequences of a batch have the bits that they have alone, also when they need several launches,
// and when backward is given what forward wrote.
TEST_F(MlaFlashCuda, ABatchIsItsSequences) {
  for (const bool bf16 : {false, true}) {
    if (bf16) context().force("matmul", "cuda_bf16");
    for (const int64_t k : {0, 9}) batch_is_its_sequences(k);
  }
}

// Rows that select fewer keys than they may, one, and all; tiles of keys that nobody selects.
TEST_F(MlaFlashCuda, IsTheReferenceOverAMask) {
  for (const bool bf16 : {false, true}) {
    if (bf16) context().force("matmul", "cuda_bf16");
    const double product = bf16 ? 2.01 * 0x1p-9 : 3.01 * 0x1p-18;
    for (const int64_t k : {1, 20, 500}) {
      for (const int64_t tokens : {1, 64, 65, 150}) check({tokens, 2, 32, 16, 32}, product, k);
      check({330, 3, 5, 4, 6}, product, k);
      for (const int64_t tokens : {33, 200}) {
        check({tokens, 2, 64, 32, 64}, product, k);
        check({tokens, 2, 128, 64, 128}, product, k);
      }
    }
  }
}

// More keys than a word of tiles and than a block of mask_selection holds.
TEST_F(MlaFlashCuda, MasksOfLongSequencesAreTheReference) {
  const std::vector<int64_t> begins = {0, 5, 4500, 4501};
  const Mask mask(context(), positions_of(begins), 3);
  EXPECT_GT(mask.on_device.words, 64);
}

TEST_F(MlaFlashCuda, RefusesLongHeads) {
  MlaSequence<float> in;
  in.nope = 129, in.rope = 64, in.v_dim = 128;
  EXPECT_FALSE(mla_flash_supports(in));
  in.nope = 128, in.v_dim = 129;
  EXPECT_FALSE(mla_flash_supports(in));
  in.v_dim = 128;
  EXPECT_TRUE(mla_flash_supports(in));
}

}  // namespace
}  // namespace tamis
