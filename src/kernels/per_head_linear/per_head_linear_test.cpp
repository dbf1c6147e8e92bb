#include <gtest/gtest.h>

#include "kernels/linear/linear_int8.h"
#include "kernels/per_head_linear/per_head_linear_impl.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;

struct Shape {
  int64_t tokens, heads, head_rows, row_offset, rows, cols;
};

// x and y lie with gaps between tokens and heads.
struct Case {
  TestWeight weight;
  Floats x, y;
  PerHeadLinearArgs args;
};

Case make_case(DType dtype, const Shape& s, bool transposed) {
  Case c;
  const int64_t in = transposed ? s.rows : s.cols, out = transposed ? s.cols : s.rows;
  c.weight = test_weight(dtype, s.heads * s.head_rows, s.cols, 1);
  c.x = random_floats(s.tokens * s.heads * (in + 3) + 1, 2);
  c.y.assign(static_cast<size_t>(s.tokens * s.heads * (out + 5) + 1), -7.0f);
  PerHeadLinearArgs& a = c.args;
  a.x_head_stride = in + 3;
  a.x_token_stride = s.heads * (in + 3);
  a.num_tokens = s.tokens;
  a.num_heads = s.heads;
  a.head_rows = s.head_rows;
  a.row_offset = s.row_offset;
  a.rows = s.rows;
  a.transposed = transposed;
  a.y_head_stride = out + 5;
  a.y_token_stride = s.heads * (out + 5);
  return c;
}

void run(KernelContext& context, Case& c) {
  c.args.x = c.x.data();
  c.args.y = c.y.data();
  c.args.w = c.weight.w;
  per_head_linear(context, c.args);
}

void check_output(const Case& c, int64_t t, int64_t h) {
  const PerHeadLinearArgs& a = c.args;
  const int64_t in = a.transposed ? a.rows : a.w.cols, out = a.transposed ? a.w.cols : a.rows;
  const float* x = a.x + t * a.x_token_stride + h * a.x_head_stride;
  const float* y = a.y + t * a.y_token_stride + h * a.y_head_stride;
  std::vector<Floats> w;
  for (int64_t r = 0; r < a.rows; ++r) {
    w.push_back(c.weight.row(h * a.head_rows + a.row_offset + r));
  }
  for (int64_t o = 0; o < out; ++o) {
    Floats column(static_cast<size_t>(in));
    double sum = 0;
    for (int64_t i = 0; i < in; ++i) {
      column[i] = a.transposed ? w[i][o] : w[o][i];
      sum += static_cast<double>(column[i]) * x[i];
    }
    ASSERT_NEAR(y[o], sum, dot_tolerance(in, norm2(x, in), norm2(column.data(), in)))
        << dtype_name(a.w.dtype) << " t " << t << " h " << h << " o " << o;
  }
  for (int64_t i = out; i < out + 5; ++i) ASSERT_EQ(y[i], -7.0f) << "wrote past its row";
}

constexpr Shape kShapes[] = {
    {1, 1, 1, 0, 1, 1},     {1, 2, 9, 3, 5, 7},         {2, 3, 9, 0, 4, 33},
    {3, 2, 8, 4, 4, 32},    {4, 2, 20, 8, 12, 31},      {5, 1, 40, 10, 30, 129},
    {13, 2, 12, 6, 6, 127}, {1, 2, 256, 128, 128, 256},
};

class PerHeadLinearTest : public testing::TestWithParam<const char*> {
 protected:
  PerHeadLinearTest() { context_.force("per_head_linear", GetParam()); }
  KernelContext context_{2};
};

TEST_P(PerHeadLinearTest, IsTheProductOfEachHead) {
  for (const DType dtype : kWeightFormats) {
    for (const Shape& shape : kShapes) {
      for (const bool transposed : {false, true}) {
        Case c = make_case(dtype, shape, transposed);
        run(context_, c);
        for (int64_t t = 0; t < shape.tokens; ++t) {
          for (int64_t h = 0; h < shape.heads; ++h) check_output(c, t, h);
        }
      }
    }
  }
}

// With int8 the forward direction is linear_int8 for each head; the transposed one, and weights
// that are no integers, are as without.
TEST_P(PerHeadLinearTest, Int8IsTheProductOfIntegersOfEachHead) {
  for (const DType dtype : {DType::kI8, DType::kI4, DType::kBF16}) {
    for (const Shape& shape : kShapes) {
      for (const bool transposed : {false, true}) {
        Case c = make_case(dtype, shape, transposed), plain = make_case(dtype, shape, transposed);
        c.args.int8 = true;
        run(context_, c);
        run(context_, plain);
        if (transposed || dtype == DType::kBF16) {
          ASSERT_EQ(c.y, plain.y);
          continue;
        }
        const PerHeadLinearArgs& a = c.args;
        for (int64_t h = 0; h < shape.heads; ++h) {
          LinearArgs head;
          head.x = a.x + h * a.x_head_stride;
          head.x_stride = a.x_token_stride;
          head.m = shape.tokens;
          head.w = a.w.row_slice(h * a.head_rows + a.row_offset, a.rows);
          head.y = plain.y.data() + h * a.y_head_stride;
          head.y_stride = a.y_token_stride;
          linears_int8(context_, {&head, 1});
        }
        ASSERT_EQ(c.y, plain.y);
      }
    }
  }
}

TEST_P(PerHeadLinearTest, NothingToDo) {
  for (const bool transposed : {false, true}) {
    Case c = make_case(DType::kBF16, {0, 2, 8, 0, 8, 16}, transposed);
    run(context_, c);
    EXPECT_EQ(c.y[0], -7.0f);
  }
}

// The bits of a token's rows alone, in batches up to 20, and with another number of threads.
TEST_P(PerHeadLinearTest, BitsDoNotDependOnTheBatch) {
  KernelContext one(1);
  one.force("per_head_linear", GetParam());
  for (const DType dtype : {DType::kBF16, DType::kF8E4M3, DType::kI8}) {
    for (const bool transposed : {false, true}) {
      const Shape shape = {20, 2, 300, 100, 150, 200};
      Case batch = make_case(dtype, shape, transposed);
      for (int64_t tokens = 1; tokens <= 20; ++tokens) {
        std::fill(batch.y.begin(), batch.y.end(), 0.0f);
        batch.args.num_tokens = tokens;
        run(context_, batch);
        Case alone = make_case(dtype, shape, transposed);
        alone.args.num_tokens = 1;
        const int64_t last = tokens - 1;
        std::copy_n(batch.x.begin() + last * batch.args.x_token_stride, batch.args.x_token_stride,
                    alone.x.begin());
        std::fill(alone.y.begin(), alone.y.end(), 0.0f);
        run(one, alone);
        const int64_t stride = alone.args.y_token_stride;
        ASSERT_EQ(std::memcmp(alone.y.data(), &batch.y[last * stride],
                              static_cast<size_t>(stride) * sizeof(float)),
                  0)
            << dtype_name(dtype) << " tokens " << tokens;
        alone.x[0] += 1.0f;  // the comparison sees a change
        run(one, alone);
        ASSERT_NE(std::memcmp(alone.y.data(), &batch.y[last * stride],
                              static_cast<size_t>(stride) * sizeof(float)),
                  0);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Implementations, PerHeadLinearTest, testing::Values("simd", "reference"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace tamis
