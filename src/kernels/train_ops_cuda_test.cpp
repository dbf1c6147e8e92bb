// The gradients' CUDA versions against the references on the host: those that compute in double
// against them in double, the others bit by bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "kernels/test_weight.h"
#include "kernels/tolerance.h"
#include "kernels/train_ops.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using Ints = std::vector<int32_t>;

class TrainOpsCuda : public CudaTest {
 protected:
  // Doubles that the device rounded once, and added to `start` with a second rounding. Sums in
  // double in another order are off by `terms` roundings of 2^-53 of the terms, at most `size`.
  static void expect_rounded(const Floats& got, const Doubles& want, const Floats& start,
                             double terms, double size) {
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      const double before = start.empty() ? 0 : start[i];
      const double unit = kUnitF32 * (std::abs(want[i] - before) + std::abs(want[i])) * 1.01;
      ASSERT_NEAR(got[i], want[i], unit + terms * 0x1p-52 * size + 1e-45) << i;
    }
  }
  static bool same_bits(const Floats& a, const Floats& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), 4 * a.size()) == 0;
  }
};

Doubles doubles(const Floats& x) { return {x.begin(), x.end()}; }

Ints random_ids(int64_t n, int64_t most, uint32_t seed) {
  std::mt19937 generator(seed);
  Ints ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = static_cast<int32_t>(generator() % static_cast<uint32_t>(most));
  return ids;
}

TEST_F(TrainOpsCuda, RmsNorm) {
  for (const int64_t width : {1, 31, 33, 384, 1025}) {
    for (const int64_t rows : {0, 1, 127, 128, 300}) {
      if (skip_case()) continue;
      const int64_t stride = width + 2;
      const Floats x = random_floats(rows * stride, 1), dy = random_floats(rows * width, 2);
      const Floats w = random_floats(width, 3), dw = random_floats(width, 5);
      const Floats dx = random_floats(rows * stride, 4);
      Device<float> gx(context(), x), gdy(context(), dy), gw(context(), w), gdx(context(), dx),
          gdw(context(), dw);
      rms_norm_backward<float>(context(), {gx.data(), stride, gw.data(), gdy.data(), rows, width,
                                           1e-6F, gdx.data(), stride, gdw.data()});
      const Doubles x64 = doubles(x), w64 = doubles(w), dy64 = doubles(dy);
      Doubles want_dx = doubles(dx), want_dw = doubles(dw);
      const double eps = 1e-6F;
      rms_norm_backward<double>(reference(), {x64.data(), stride, w64.data(), dy64.data(), rows,
                                              width, eps, want_dx.data(), stride, want_dw.data()});
      // r of one value may be as large as 1 / sqrt(eps).
      expect_rounded(gdx.read(), want_dx, dx, static_cast<double>(width) + 10, 1e6);
      expect_rounded(gdw.read(), want_dw, dw, static_cast<double>(rows) + 10,
                     static_cast<double>(rows) * 10);
      // Overwriting is adding to zeros; -0 and 0 are the same there.
      const Floats zeros(dx.size());
      Device<float> alone(context(), dx), added(context(), zeros);
      rms_norm_backward<float>(context(), {gx.data(), stride, gw.data(), gdy.data(), rows, width,
                                           1e-6F, added.data(), stride, gdw.data()});
      rms_norm_backward<float>(context(), {gx.data(), stride, gw.data(), gdy.data(), rows, width,
                                           1e-6F, alone.data(), stride, gdw.data(), true});
      const Floats sum = added.read(), got = alone.read();
      for (size_t i = 0; i < got.size(); ++i) {
        const bool between = static_cast<int64_t>(i) % stride >= width;
        ASSERT_EQ(got[i], between ? dx[i] : sum[i]) << i;
      }
    }
  }
}

TEST_F(TrainOpsCuda, LayerNorm) {
  for (const int64_t width : {2, 32, 33, 128, 500}) {
    for (const int64_t rows : {0, 1, 9, 129, 1000}) {
      if (skip_case()) continue;
      const Floats x = random_floats(rows * width, 1), w = random_floats(width, 2);
      const Floats dy = random_floats(rows * width, 3), dw = random_floats(width, 4);
      const Floats db = random_floats(width, 5);
      Device<float> gx(context(), x), gw(context(), w), gdy(context(), dy), gdw(context(), dw),
          gdb(context(), db);
      // In place, as the trainer calls it.
      layer_norm_backward<float>(context(), {gx.data(), gw.data(), gdy.data(), rows, width, 1e-6F,
                                             gdy.data(), gdw.data(), gdb.data()});
      const Doubles x64 = doubles(x), w64 = doubles(w);
      Doubles want_dx = doubles(dy), want_dw = doubles(dw), want_db = doubles(db);
      const double eps = 1e-6F;
      layer_norm_backward<double>(
          reference(), {x64.data(), w64.data(), want_dx.data(), rows, width, eps, want_dx.data(),
                        want_dw.data(), want_db.data()});
      expect_rounded(gdy.read(), want_dx, {}, static_cast<double>(width) + 10, 1e6);
      expect_rounded(gdw.read(), want_dw, dw, static_cast<double>(rows) + 10,
                     static_cast<double>(rows) * 100);
      expect_rounded(gdb.read(), want_db, db, static_cast<double>(rows) + 10,
                     static_cast<double>(rows) * 10);
    }
  }
}

TEST_F(TrainOpsCuda, Swiglu) {
  for (const int64_t n : {0, 1, 255, 257, 70001}) {
    Floats gate = random_floats(n, 1);
    for (float& g : gate) g *= 8;
    const Floats up = random_floats(n, 2), dy = random_floats(n, 3);
    Device<float> g(context(), gate), u(context(), up), d(context(), dy), dgate(context(), n),
        dup(context(), n);
    swiglu_backward<float>(context(),
                           {g.data(), u.data(), d.data(), 1, n, dgate.data(), dup.data()});
    const Floats got_gate = dgate.read(), got_up = dup.read();
    for (size_t i = 0; i < gate.size(); ++i) {
      const double x = gate[i], s = 1 / (1 + std::exp(-x));
      // expf is off by 2 units, the rest rounds; 1 + g (1 - s) is a sum of terms of both signs.
      const double size = std::abs(dy[i] * up[i] * s) * (1 + std::abs(x) * (1 - s));
      ASSERT_NEAR(got_gate[i], dy[i] * up[i] * s * (1 + x * (1 - s)),
                  16 * kUnitF32 * (size + std::abs(dy[i] * up[i] * s * x)) + 1e-44);
      ASSERT_NEAR(got_up[i], dy[i] * x * s, 8 * kUnitF32 * std::abs(dy[i] * x * s) + 1e-44);
    }
  }
}

TEST_F(TrainOpsCuda, RopeTurns) {
  for (const RopeLayout layout : {RopeLayout::kInterleaved, RopeLayout::kHalfSplit}) {
    for (const int64_t tokens : {0, 1, 37}) {
      for (const bool back : {false, true}) {
        const int64_t heads = 3, dim = 10, head_stride = 13, token_stride = 41;
        Floats x = random_floats(tokens * token_stride + 1, 1);
        const Floats cos = random_floats(tokens * dim / 2, 2);
        const Floats sin = random_floats(tokens * dim / 2, 3);
        Device<float> gx(context(), x), gc(context(), cos), gs(context(), sin);
        rope_turn<float>(context(), {gx.data(), token_stride, head_stride, tokens, heads, dim,
                                     layout, gc.data(), gs.data(), back});
        rope_turn<float>(reference(), {x.data(), token_stride, head_stride, tokens, heads, dim,
                                       layout, cos.data(), sin.data(), back});
        ASSERT_TRUE(same_bits(gx.read(), x));
      }
    }
  }
}

TEST_F(TrainOpsCuda, CrossEntropy) {
  for (const int64_t vocabulary : {1, 2, 511, 513, 8192}) {
    for (const int64_t rows : {0, 1, 5}) {
      Floats logits = random_floats(rows * vocabulary, 1);
      for (float& x : logits) x *= 10;
      if (rows == 5 && vocabulary > 2) {
        logits[static_cast<size_t>(vocabulary + 1)] = -std::numeric_limits<float>::infinity();
      }
      Ints targets(static_cast<size_t>(rows));
      for (int64_t r = 0; r < rows; ++r) targets[r] = static_cast<int32_t>(r * 77 % vocabulary);
      if (rows == 5) targets[3] = -1;
      Device<float> x(context(), logits);
      Device<int32_t> t(context(), targets);
      Device<double> loss(context(), rows);
      cross_entropy_backward<float>(context(),
                                    {x.data(), t.data(), rows, vocabulary, 0.25, loss.data()});
      Doubles want = doubles(logits), want_loss(static_cast<size_t>(rows));
      cross_entropy_backward<double>(
          reference(), {want.data(), targets.data(), rows, vocabulary, 0.25, want_loss.data()});
      const Floats got = x.read();
      const Doubles got_loss = loss.read();
      // Exponents are rounded once, at most 200 here; expf is off by 2 units.
      const double unit = kUnitF32 * (200 + 8);
      for (size_t i = 0; i < got.size(); ++i) {
        ASSERT_NEAR(got[i], want[i], unit * std::abs(want[i]) + 2 * kUnitF32 * 0.25) << i;
      }
      for (size_t r = 0; r < got_loss.size(); ++r) ASSERT_NEAR(got_loss[r], want_loss[r], unit);
    }
  }
}

TEST_F(TrainOpsCuda, MoeGate) {
  for (const int64_t experts : {2, 16, 33, 256}) {
    for (const bool norm : {false, true}) {
      const int64_t chosen = experts == 2 ? 1 : 2 + experts / 40;
      // 30 sequences: more than one launch takes; some are empty.
      std::vector<int64_t> begins = {0};
      for (int64_t i = 0; i < 30; ++i) begins.push_back(begins.back() + i * 5 % 23);
      const int64_t tokens = begins.back();
      const Floats logits = random_floats(tokens * experts, 1);
      const Floats dweights = random_floats(tokens * chosen, 2);
      Ints ids;
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t i = 0; i < chosen; ++i) {
          ids.push_back(static_cast<int32_t>((t * 7 + i) % experts));
        }
      }
      Device<float> gl(context(), logits), gd(context(), dweights);
      Device<float> out(context(), tokens * experts);
      Device<int32_t> gi(context(), ids);
      Device<double> balance(context(), 30);
      const Doubles l64 = doubles(logits), d64 = doubles(dweights);
      Doubles want(l64.size()), want_balance(30);
      std::vector<MoeGateBackwardArgs<float>> list;
      for (size_t i = 0; i < 30; ++i) {
        const int64_t b = begins[i], n = begins[i + 1] - b;
        list.push_back({gl.data() + b * experts, gi.data() + b * chosen, gd.data() + b * chosen, n,
                        experts, chosen, norm, 2.5, 0.3, out.data() + b * experts,
                        balance.data() + i});
        moe_gate_backward<double>(
            reference(),
            {l64.data() + b * experts, ids.data() + b * chosen, d64.data() + b * chosen, n, experts,
             chosen, norm, 2.5, 0.3, want.data() + b * experts, &want_balance[i]});
      }
      moe_gate_backwards<float>(context(), list);
      expect_rounded(out.read(), want, {}, static_cast<double>(experts) + 20, 100);
      const Doubles got = balance.read();
      for (size_t i = 0; i < 30; ++i) ASSERT_NEAR(got[i], want_balance[i], 1e-12) << i;
    }
  }
}

TEST_F(TrainOpsCuda, MoeRows) {
  for (const int64_t width : {1, 33, 384, 700}) {
    for (const int64_t tokens : {0, 1, 70}) {
      for (const int64_t chosen : {1, 3}) {
        if (skip_case()) continue;
        const int64_t pairs = tokens * chosen;
        Ints row_of(static_cast<size_t>(pairs));
        for (int64_t i = 0; i < pairs; ++i) row_of[i] = static_cast<int32_t>(pairs - 1 - i);
        const Floats rows = random_floats(pairs * width, 1), dy = random_floats(tokens * width, 2);
        const Floats weights = random_floats(pairs, 3);
        Device<float> gr(context(), rows), gd(context(), dy), gw(context(), weights);
        Device<float> drows(context(), pairs * width), dweights(context(), pairs);
        Device<int32_t> gi(context(), row_of);
        moe_combine_backward<float>(context(), {gr.data(), gi.data(), gw.data(), gd.data(), tokens,
                                                chosen, width, drows.data(), dweights.data()});
        Floats want_rows(rows.size()), want_weights(weights.size());
        moe_combine_backward<float>(
            reference(), {rows.data(), row_of.data(), weights.data(), dy.data(), tokens, chosen,
                          width, want_rows.data(), want_weights.data()});
        ASSERT_TRUE(same_bits(drows.read(), want_rows));
        expect_rounded(dweights.read(), doubles(want_weights), {}, static_cast<double>(width),
                       static_cast<double>(width) * 10);
        Floats dx = random_floats(tokens * width, 4), y = dx;
        Device<float> gx(context(), dx), gy(context(), y);
        moe_permute_backward<float>(context(),
                                    {gr.data(), gi.data(), tokens, chosen, width, gx.data()});
        moe_permute_backward<float>(reference(),
                                    {rows.data(), row_of.data(), tokens, chosen, width, dx.data()});
        ASSERT_TRUE(same_bits(gx.read(), dx));
        add_experts<float>(context(),
                           {gr.data(), gi.data(), gw.data(), tokens, chosen, width, gy.data()});
        add_experts<float>(reference(), {rows.data(), row_of.data(), weights.data(), tokens, chosen,
                                         width, y.data()});
        ASSERT_TRUE(same_bits(gy.read(), y));
      }
    }
  }
}

TEST_F(TrainOpsCuda, Embedding) {
  for (const int64_t vocabulary : {1, 2, 300, 70000}) {
    for (const int64_t tokens : {0, 1, 31, 33, 1025, 5000}) {
      if (skip_case()) continue;
      const int64_t width = vocabulary > 1000 ? 3 : 300;
      const Ints ids = random_ids(tokens, vocabulary, 1);
      const Floats dy = random_floats(tokens * width, 2);
      Floats dw = random_floats(vocabulary * width, 3);
      const Floats before = dw;
      Device<int32_t> gi(context(), ids);
      Device<float> gy(context(), dy), gw(context(), dw);
      embedding_backward<float>(context(), {gi.data(), gy.data(), tokens, width, gw.data()});
      embedding_backward<float>(reference(), {ids.data(), dy.data(), tokens, width, dw.data()});
      // Rows of more than one chunk are summed in another order: off by a rounding of the sum so
      // far for each token.
      const Floats got = gw.read();
      const double unit = static_cast<double>(tokens + 1) * kUnitF32;
      double most = 0;
      for (const float y : dy) most = std::max(most, std::abs(static_cast<double>(y)));
      for (size_t i = 0; i < dw.size(); ++i) {
        ASSERT_NEAR(got[i], dw[i], 2 * unit * (static_cast<double>(tokens) * most + 5))
            << vocabulary << " " << tokens;
      }
      Device<float> again(context(), before);
      embedding_backward<float>(context(),
                                {gi.data(), gy.data(), tokens, width, again.data(), vocabulary});
      ASSERT_TRUE(same_bits(again.read(), got));
    }
  }
}

TEST_F(TrainOpsCuda, Adamw) {
  for (const int64_t n : {0, 1, 4095, 4097, 100000}) {
    Floats w = random_floats(n, 1), m = random_floats(n, 3), v = random_floats(n, 4);
    const Floats g = random_floats(n, 2);
    for (float& x : v) x *= x;
    Device<float> gw(context(), w), gg(context(), g), gm(context(), m), gv(context(), v);
    AdamwArgs a;
    a.n = n;
    a.step = 7;
    a.learning_rate = 1e-3;
    a.decay = 0.1;
    a.gradient_scale = 0.3;
    AdamwArgs on_gpu = a;
    on_gpu.w = gw.data(), on_gpu.g = gg.data(), on_gpu.m = gm.data(), on_gpu.v = gv.data();
    a.w = w.data(), a.g = g.data(), a.m = m.data(), a.v = v.data();
    adamw(context(), on_gpu);
    adamw(reference(), a);
    ASSERT_TRUE(same_bits(gw.read(), w));
    ASSERT_TRUE(same_bits(gm.read(), m));
    ASSERT_TRUE(same_bits(gv.read(), v));
    const Doubles got = squares_by_block(context(), gg.data(), n);
    const Doubles want = squares_by_block(reference(), g.data(), n);
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], want[i], kSquaresBlock * 0x1p-52 * want[i]);
    }
  }
}

TEST_F(TrainOpsCuda, Arrays) {
  for (const int64_t rows : {0, 1, 77}) {
    for (const int64_t width : {1, 48, 513}) {
      const int64_t n = rows * width;
      const Floats x = random_floats(2 * n, 1);
      Floats y = random_floats(n, 2), scaled = y, copied = random_floats(rows * (width + 3), 3);
      Ints row(static_cast<size_t>(rows));
      for (int64_t r = 0; r < rows; ++r) row[r] = static_cast<int32_t>(2 * (rows - 1 - r));
      Device<float> gx(context(), x), gy(context(), y), gs(context(), scaled);
      Device<float> gc(context(), copied), picked(context(), n), back(context(), x);
      Device<int32_t> gr(context(), row);
      add_values(context(), gx.data(), n, gy.data());
      add_values(reference(), x.data(), n, y.data());
      ASSERT_TRUE(same_bits(gy.read(), y));
      scale_values(context(), gs.data(), n, 0.3F);
      scale_values(reference(), scaled.data(), n, 0.3F);
      ASSERT_TRUE(same_bits(gs.read(), scaled));
      copy_columns<float>(context(), {gx.data(), 2 * width, rows, width, gc.data(), width + 3});
      copy_columns<float>(reference(),
                          {x.data(), 2 * width, rows, width, copied.data(), width + 3});
      ASSERT_TRUE(same_bits(gc.read(), copied));
      Floats want(static_cast<size_t>(n)), returned = x;
      pick_rows<float>(context(), {gx.data(), gr.data(), rows, width, picked.data()});
      pick_rows<float>(reference(), {x.data(), row.data(), rows, width, want.data()});
      ASSERT_TRUE(same_bits(picked.read(), want));
      return_rows<float>(context(), {gy.data(), gr.data(), rows, width, back.data()});
      return_rows<float>(reference(), {y.data(), row.data(), rows, width, returned.data()});
      ASSERT_TRUE(same_bits(back.read(), returned));
      Floats ties = x;
      if (width > 2 && rows > 1) {
        ties[1] = ties[static_cast<size_t>(width - 1)] = 9;
        ties[static_cast<size_t>(width + 1)] = std::nanf("");
        ties[static_cast<size_t>(2 * width)] = std::nanf("");
      }
      Device<float> gt(context(), ties);
      Device<int32_t> best(context(), rows);
      Ints want_best(static_cast<size_t>(rows));
      largest_columns<float>(context(), {gt.data(), rows, width, best.data()});
      largest_columns<float>(reference(), {ties.data(), rows, width, want_best.data()});
      ASSERT_EQ(best.read(), want_best);
    }
  }
}

}  // namespace
}  // namespace tamis
