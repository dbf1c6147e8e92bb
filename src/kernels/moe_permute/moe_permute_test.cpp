#include <gtest/gtest.h>

#include <cstring>

#include "kernels/moe_permute/moe_permute_impl.h"
#include "kernels/test_weight.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;

struct Routed {
  std::vector<int32_t> ids, row_of;
  std::vector<int64_t> offsets;
  Floats rows;
};

Routed permute(const Floats& x, int64_t tokens, int64_t chosen, int64_t experts, int64_t width,
               bool wants_rows = true) {
  Routed r;
  for (int64_t i = 0; i < tokens * chosen; ++i) {
    r.ids.push_back(static_cast<int32_t>((i * 7 + i / chosen) % experts));
  }
  r.row_of.resize(r.ids.size());
  r.offsets.resize(static_cast<size_t>(experts + 1));
  r.rows.resize(static_cast<size_t>(tokens * chosen * width));
  KernelContext context(2);
  MoePermuteArgs a;
  a.ids = r.ids.data();
  a.tokens = tokens;
  a.num_chosen = chosen;
  a.experts = experts;
  a.x = x.data();
  a.width = width;
  a.row_of = r.row_of.data();
  a.offsets = r.offsets.data();
  a.rows = wants_rows ? r.rows.data() : nullptr;
  moe_permute(context, a);
  return r;
}

TEST(MoePermute, GroupsRowsByExpertInTokenOrder) {
  const Floats x = random_floats(9 * 5, 1);
  const Routed r = permute(x, 9, 3, 6, 5);
  EXPECT_EQ(r.offsets.front(), 0);
  EXPECT_EQ(r.offsets.back(), 27);
  std::vector<int> last_token(6, -1);
  for (size_t i = 0; i < 27; ++i) {
    const auto e = static_cast<size_t>(r.ids[i]);
    EXPECT_GE(r.row_of[i], r.offsets[e]);
    EXPECT_LT(r.row_of[i], r.offsets[e + 1]);
    EXPECT_EQ(std::memcmp(&r.rows[static_cast<size_t>(r.row_of[i]) * 5], &x[i / 3 * 5], 20), 0);
    EXPECT_GT(r.row_of[i], last_token[e]);
    last_token[e] = r.row_of[i];
  }
}

TEST(MoePermute, RowsAreNotNeeded) {
  const Floats x = random_floats(9 * 5, 1);
  const Routed with = permute(x, 9, 3, 6, 5), without = permute({}, 9, 3, 6, 5, false);
  EXPECT_EQ(with.row_of, without.row_of);
  EXPECT_EQ(with.offsets, without.offsets);
}

TEST(MoePermute, NoTokens) {
  const Routed r = permute({}, 0, 4, 3, 8);
  EXPECT_EQ(r.offsets, (std::vector<int64_t>{0, 0, 0, 0}));
}

// The vector version has the bits of the reference: the same sums, rounded at the same places.
TEST(MoeCombine, SameBitsAsTheReference) {
  KernelContext context(2);
  for (const int64_t width : {1, 7, 8, 9, 67}) {
    for (const int64_t tokens : {0, 1, 11}) {
      const Floats x = random_floats(tokens * width, 2), shared = random_floats(tokens * width, 3);
      const Floats weights = random_floats(tokens * 4, 4);
      const Routed r = permute(x, tokens, 4, 9, width);
      for (const bool with_shared : {false, true}) {
        Floats y[2];
        for (int i = 0; i < 2; ++i) {
          context.force("moe_combine", i == 0 ? "reference" : "simd");
          y[i].assign(static_cast<size_t>(tokens * width + 1), -7.0f);
          MoeCombineArgs a;
          a.rows = r.rows.data();
          a.row_of = r.row_of.data();
          a.weights = weights.data();
          a.tokens = tokens;
          a.num_chosen = 4;
          a.width = width;
          a.shared = with_shared ? shared.data() : nullptr;
          a.y = y[i].data();
          moe_combine(context, a);
        }
        EXPECT_EQ(std::memcmp(y[0].data(), y[1].data(), y[0].size() * sizeof(float)), 0);
        for (int64_t i = 0; i < tokens * width; ++i) {
          float sum = 0;
          for (int64_t j = 0; j < 4; ++j) sum += weights[i / width * 4 + j] * x[i];
          if (with_shared) sum += shared[i];
          ASSERT_EQ(y[0][i], sum);
        }
      }
    }
  }
}

}  // namespace
}  // namespace tamis
