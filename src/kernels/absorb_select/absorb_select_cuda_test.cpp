#include <cstring>

#include "kernels/absorb_select/absorb_select.h"
#include "kernels/absorb_select/absorb_select_impl.h"
#include "kernels/indexer_select/test_problem.h"
#include "kernels/test_weight.h"
#include "support/cuda_cache.h"
#include "support/cuda_weight.h"

namespace tamis {
namespace {

using indexer_select_test::Problem;

class AbsorbSelectCuda : public CudaTest {
 protected:
  struct Shape {
    DType dtype;
    int64_t heads, rows, more_rows, cols;  // of W_UK: a head has rows + more_rows
    int64_t index_heads, index_dim, turned;
  };
  struct Result {
    std::vector<float> y, pe;
    std::vector<int32_t> indices;
    std::vector<uint8_t> nan;
  };

  // The last token of a problem's longest sequence, by one operation or by two.
  Result run(const Shape& s, const Problem& problem, int64_t k, bool joined) {
    const int64_t t = problem.tokens() - 1, width = s.rows + s.turned;
    IndexerArgs in = problem.args(t, t + 1);
    const DeviceCache cache(context(), problem.cache());
    const DeviceTokens tokens(context(), in.tokens, cache);
    const Device<float> index_q(context(), {in.q, in.q + s.index_heads * s.index_dim}),
        index_w(context(), {in.w, in.w + s.index_heads}),
        q(context(), random_floats(s.heads * width, 1, 1.0F)), y(context(), s.heads * s.cols),
        cos(context(), random_floats(s.turned / 2, 2, 1.0F)),
        sin(context(), random_floats(s.turned / 2, 3, 1.0F));
    const DeviceWeight w(context(),
                         test_weight(s.dtype, s.heads * (s.rows + s.more_rows), s.cols, 4));
    const Device<int32_t> indices(context(), k);
    const Device<uint8_t> nan(context(), 1);
    in.q = index_q.data();
    in.w = index_w.data();
    in.kv = cache.layer();
    in.tokens = tokens.map();
    const RopeArgs pe{q.data() + s.rows, s.heads * width,          width,      1,         s.heads,
                      s.turned,          RopeLayout::kInterleaved, cos.data(), sin.data()};
    PerHeadLinearArgs up;
    up.x = q.data();
    up.x_token_stride = s.heads * width;
    up.x_head_stride = width;
    up.num_tokens = 1;
    up.num_heads = s.heads;
    up.w = w.w();
    up.head_rows = s.rows + s.more_rows;
    up.rows = s.rows;
    up.transposed = true;
    up.y = y.data();
    up.y_token_stride = s.heads * s.cols;
    up.y_head_stride = s.cols;
    up.beside = {&pe, 1};
    const IndexerSelectArgs select{
        in, k, indices.data(), nan.data(),
        RopeArgs{index_q.data(), s.index_heads * s.index_dim, s.index_dim, 1, s.index_heads,
                 s.turned, RopeLayout::kHalfSplit, cos.data(), sin.data()}};
    if (joined) {
      EXPECT_TRUE(absorb_select_cuda_supports({up, select}));
      absorb_select(context(), {up, select});
    } else {
      per_head_linear(context(), up);
      indexer_select(context(), select);
    }
    return {y.read(), q.read(), indices.read(), nan.read()};
  }
};

TEST_F(AbsorbSelectCuda, HasTheBitsOfBoth) {
  for (const Shape& s : {Shape{DType::kBF16, 4, 128, 128, 512, 4, 128, 64},
                         Shape{DType::kBF16, 3, 40, 1, 300, 1, 128, 16},
                         Shape{DType::kBF16, 1, 129, 0, 5, 3, 20, 4}}) {
    Problem problem({s.index_heads, s.index_dim}, KvFormat::kF32);
    for (const bool poisoned : {false, true}) {
      if (poisoned) problem.w(problem.tokens() - 1)[0] = NAN;
      for (const int64_t k : {1, 256}) {
        const Result got = run(s, problem, k, true), want = run(s, problem, k, false);
        for (const auto& [a, b] : {std::pair{got.y, want.y}, std::pair{got.pe, want.pe}}) {
          ASSERT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << s.cols;
          for (const float v : a) ASSERT_FALSE(std::isnan(v));
        }
        EXPECT_EQ(got.indices, want.indices);
        EXPECT_EQ(got.nan, want.nan);
        EXPECT_EQ(got.nan[0], poisoned ? 1 : 0);
      }
    }
  }
}

TEST_F(AbsorbSelectCuda, TakesWhatItSays) {
  const Problem problem({4, 128}, KvFormat::kF32);
  const DeviceCache cache(context(), problem.cache());
  const Device<float> q(context(), 512);
  AbsorbSelectArgs a;
  a.absorb.num_tokens = a.absorb.num_heads = 1;
  a.absorb.w.cols = 512;
  a.absorb.w.dtype = DType::kBF16;
  a.absorb.transposed = true;
  a.select.in.kv = cache.layer();
  a.select.in.heads = 4;
  a.select.in.q = q.data();
  a.select.in.tokens.num_tokens = 1;
  a.select.in.tokens.max_context = 257;
  a.select.k = 256;
  EXPECT_TRUE(absorb_select_cuda_supports(a));
  const auto refuses = [](AbsorbSelectArgs b, auto change) {
    change(b);
    return !absorb_select_cuda_supports(b);
  };
  EXPECT_TRUE(refuses(a, [](auto& b) { b.select.in.tokens.max_context = 256; })) << "all taken";
  EXPECT_TRUE(refuses(a, [](auto& b) { b.select.in.heads = 5; }));
  EXPECT_TRUE(refuses(a, [](auto& b) { b.absorb.num_tokens = 2; }));
  EXPECT_TRUE(refuses(a, [](auto& b) { b.absorb.w.dtype = DType::kF8E4M3; }));
  EXPECT_TRUE(refuses(a, [](auto& b) { b.select.query_rope.dim = 130; }));
}

}  // namespace
}  // namespace tamis
