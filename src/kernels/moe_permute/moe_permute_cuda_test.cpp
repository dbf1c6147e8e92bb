#include <cstring>
#include <random>

#include "kernels/moe_permute/moe_permute.h"
#include "kernels/test_weight.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

std::vector<int32_t> random_ids(int64_t n, int64_t experts, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<int32_t> ids(static_cast<size_t>(n));
  for (int32_t& id : ids) id = static_cast<int32_t>(generator() % static_cast<uint32_t>(experts));
  return ids;
}

using MoePermuteCuda = CudaTest;

TEST_F(MoePermuteCuda, SortsStablyAndCombinesAsTheReference) {
  for (const int64_t experts : {1, 16, 31, 33, 256, 1000}) {
    for (const int64_t tokens : {0, 1, 4, 5, 33, 129, 700}) {
      for (const int64_t chosen : {1, 8}) {
        for (const int64_t width : {1, 64, 1028}) {
          if (skip_case()) continue;
          const int64_t pairs = tokens * chosen;
          const std::vector<int32_t> ids = random_ids(pairs, experts, 1);
          const std::vector<float> x = random_floats(tokens * width, 2);
          std::vector<int32_t> row_of(static_cast<size_t>(pairs));
          std::vector<int64_t> offsets(static_cast<size_t>(experts + 1));
          std::vector<float> rows(static_cast<size_t>(pairs * width));
          moe_permute(reference(), {ids.data(), tokens, chosen, experts, x.data(), width,
                                    row_of.data(), offsets.data(), rows.data()});
          Device<int32_t> d_ids(context(), ids), d_row_of(context(), pairs);
          Device<int64_t> d_offsets(context(), experts + 1);
          Device<float> d_x(context(), x), d_rows(context(), pairs * width);
          moe_permute(context(), {d_ids.data(), tokens, chosen, experts, d_x.data(), width,
                                  d_row_of.data(), d_offsets.data(), d_rows.data()});
          ASSERT_EQ(d_row_of.read(), row_of) << experts << " " << tokens << " " << chosen;
          ASSERT_EQ(d_offsets.read(), offsets);
          ASSERT_EQ(d_rows.read(), rows);

          const std::vector<float> weights = random_floats(pairs, 3);
          const std::vector<float> shared = random_floats(tokens * width, 4);
          Device<float> d_weights(context(), weights), d_shared(context(), shared);
          for (const bool with_shared : {false, true}) {
            std::vector<float> want(shared.size());
            moe_combine(reference(), {rows.data(), row_of.data(), weights.data(), tokens, chosen,
                                      width, with_shared ? shared.data() : nullptr, want.data()});
            Device<float> y(context(), tokens * width);
            moe_combine(context(),
                        {d_rows.data(), d_row_of.data(), d_weights.data(), tokens, chosen, width,
                         with_shared ? d_shared.data() : nullptr, y.data()});
            ASSERT_EQ(std::memcmp(y.read().data(), want.data(), want.size() * sizeof(float)), 0);
          }
        }
      }
    }
  }
}

// Many pairs are sorted by several blocks, the last of which is not full.
TEST_F(MoePermuteCuda, SortsManyPairsStably) {
  for (const int64_t experts : {1, 5, 16, 300, 5000}) {
    for (const int64_t tokens : {8192, 9001, 40000}) {
      if (skip_case()) continue;
      const int64_t chosen = 4, pairs = tokens * chosen;
      std::vector<int32_t> ids = random_ids(pairs, experts, 1);
      for (size_t i = 5000; i < 9500; ++i) ids[i] = 0;  // all of one block's are one expert's
      std::vector<int32_t> row_of(ids.size());
      std::vector<int64_t> offsets(static_cast<size_t>(experts + 1));
      moe_permute(reference(), {ids.data(), tokens, chosen, experts, nullptr, 0, row_of.data(),
                                offsets.data(), nullptr});
      Device<int32_t> d_ids(context(), ids), d_row_of(context(), pairs);
      Device<int64_t> d_offsets(context(), experts + 1);
      moe_permute(context(), {d_ids.data(), tokens, chosen, experts, nullptr, 0, d_row_of.data(),
                              d_offsets.data(), nullptr});
      ASSERT_EQ(d_row_of.read(), row_of) << experts << " " << tokens;
      ASSERT_EQ(d_offsets.read(), offsets);
    }
  }
}

}  // namespace
}  // namespace tamis
