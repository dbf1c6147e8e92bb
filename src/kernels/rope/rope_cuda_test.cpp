#include <cstring>

#include "kernels/rope/rope.h"
#include "kernels/test_weight.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

using RopeCuda = CudaTest;

TEST_F(RopeCuda, HasTheReferencesBits) {
  for (const RopeLayout layout : {RopeLayout::kInterleaved, RopeLayout::kHalfSplit}) {
    for (const int64_t heads : {1, 2, 64, 128}) {
      for (const int64_t tokens : {0, 1, 5}) {
        const int64_t dim = 64, head_stride = 70, token_stride = heads * head_stride + 1;
        std::vector<float> x = random_floats(tokens * token_stride, 1);
        const std::vector<float> cos = random_floats(tokens * dim / 2, 2);
        const std::vector<float> sin = random_floats(tokens * dim / 2, 3);
        Device<float> dx(context(), x), dc(context(), cos), ds(context(), sin);
        rope(context(), {dx.data(), token_stride, head_stride, tokens, heads, dim, layout,
                         dc.data(), ds.data()});
        rope(reference(), {x.data(), token_stride, head_stride, tokens, heads, dim, layout,
                           cos.data(), sin.data()});
        ASSERT_EQ(std::memcmp(dx.read().data(), x.data(), x.size() * sizeof(float)), 0) << heads;
      }
    }
  }
}

TEST_F(RopeCuda, SeveralAreAsEachAlone) {
  const int64_t dim = 64, tokens = 5;
  Device<float> cos(context(), random_floats(tokens * dim / 2, 2));
  Device<float> sin(context(), random_floats(tokens * dim / 2, 3));
  std::vector<Device<float>> alone, together;
  std::vector<RopeArgs> args;
  for (const int64_t heads : {4, 1, 1, 64, 2, 0}) {
    const std::vector<float> x = random_floats(tokens * heads * 70, 4);
    alone.emplace_back(context(), x);
    together.emplace_back(context(), x);
    const RopeLayout layout = heads == 1 ? RopeLayout::kHalfSplit : RopeLayout::kInterleaved;
    RopeArgs a{alone.back().data(), heads * 70, 70, tokens, heads, dim, layout,
               cos.data(),          sin.data()};
    rope(context(), a);
    a.x = together.back().data();
    args.push_back(a);
  }
  ropes(context(), args);
  for (size_t i = 0; i < args.size(); ++i) EXPECT_EQ(together[i].read(), alone[i].read()) << i;
}

}  // namespace
}  // namespace tamis
