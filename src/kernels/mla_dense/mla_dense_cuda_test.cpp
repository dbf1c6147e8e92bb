#include <algorithm>
#include <cstring>
#include <string>

#include "kernels/explain.h"
#include "kernels/mla_dense/test_problem.h"
#include "support/cuda_device.h"

namespace tamis {
using namespace mla_dense_test;

namespace {

using Floats = std::vector<float>;

constexpr Shape kShapes[] = {{1, 128, 64, 128}, {3, 16, 8, 16}, {2, 20, 6, 21}, {4, 192, 64, 256}};

bool same_bits(const float* a, const float* b, int64_t n) {
  return std::memcmp(a, b, static_cast<size_t>(n) * sizeof(float)) == 0;
}

class MlaDenseCuda : public CudaTest {
 protected:
  Floats run(const Problem& problem, int64_t begin, int64_t end) {
    MlaDenseArgs a = problem.args(begin, end);
    const int64_t n = end - begin, s = problem.positions();
    const Device<float> q(context(), Floats(a.q, a.q + n * a.heads * (a.nope + a.rope)));
    const Device<float> kv(context(), Floats(a.kv, a.kv + s * a.heads * (a.nope + a.v_dim)));
    const Device<float> k_pe(context(), Floats(a.k_pe, a.k_pe + s * a.rope));
    const Device<int32_t> position(context(), {a.position, a.position + n});
    const std::vector<int32_t> list = a.indices == nullptr
                                          ? std::vector<int32_t>{}
                                          : std::vector<int32_t>(a.indices, a.indices + n * a.k);
    const Device<int32_t> indices(context(), list);
    const Device<float> out(context(), n * problem.row());
    a.q = q.data();
    a.kv = kv.data();
    a.k_pe = k_pe.data();
    a.position = position.data();
    if (a.indices != nullptr) a.indices = indices.data();
    a.round_bf16 = problem.round_bf16;
    a.out = out.data();
    mla_dense(context(), a);
    return out.read();
  }
  Floats all(const Problem& problem) { return run(problem, 0, problem.tokens()); }

  void expect_near(const Floats& got, const Floats& want, double tolerance) {
    for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], tolerance) << i;
  }
};

TEST_F(MlaDenseCuda, AgreesWithTheReference) {
  for (const Shape& shape : kShapes) {
    for (const auto& [tokens, positions] : {std::pair<int64_t, int64_t>{1, 1},
                                            {1, 300},
                                            {3, 64},
                                            {59, 65},
                                            {60, 60},
                                            {61, 129},
                                            {130, 130}}) {
      if (skip_case()) continue;
      const Problem problem(shape, tokens, positions);
      expect_near(all(problem), problem.all("reference"), problem.tolerance());
    }
  }
}

TEST_F(MlaDenseCuda, AttendsToTheSelectionAlone) {
  for (const Shape& shape : kShapes) {
    for (const int64_t k : {1, 3, 64, 100}) {
      if (skip_case()) continue;
      Problem problem(shape, 70, 300);
      const Floats dense = all(problem);
      problem.select(k);
      expect_near(all(problem), problem.all("reference"), problem.tolerance());
      problem.select(300);
      const Floats whole = all(problem);
      EXPECT_TRUE(same_bits(whole.data(), dense.data(), static_cast<int64_t>(whole.size())));
    }
  }
}

TEST_F(MlaDenseCuda, BitsDependOnTheTokenAlone) {
  for (const bool rounded : {false, true}) {
    for (const Shape& shape : kShapes) {
      for (const bool selected : {false, true}) {
        Problem problem(shape, 67, 140);
        if (rounded) problem.round_inputs();
        if (selected) problem.select(5);
        const Floats whole = all(problem);
        for (const int64_t chunk : {1, 7, 64}) {
          if (skip_case()) continue;
          for (int64_t begin = 0; begin < problem.tokens(); begin += chunk) {
            const int64_t end = std::min(begin + chunk, problem.tokens());
            const Floats piece = run(problem, begin, end);
            ASSERT_TRUE(same_bits(whole.data() + begin * problem.row(), piece.data(),
                                  (end - begin) * problem.row()));
          }
        }
      }
    }
  }
}

TEST_F(MlaDenseCuda, APositionThatAQueryDoesNotSeeCannotReachIt) {
  for (const bool rounded : {false, true}) {
    Problem problem({2, 16, 8, 16}, 60, 60);
    if (rounded) problem.round_inputs();
    const Floats clean = all(problem);
    problem.poison_position(31);
    const Floats got = all(problem);
    EXPECT_TRUE(same_bits(clean.data(), got.data(), 31 * problem.row()));
    for (size_t i = static_cast<size_t>(31 * problem.row()); i < got.size(); ++i) {
      ASSERT_TRUE(std::isnan(got[i])) << i;
    }
  }
}

// As mla_sparse's: weights are rounded to bf16 before they are divided by their sum here and after
// in the reference; each moves a weighted mean by at most a unit of the largest value.
TEST_F(MlaDenseCuda, TensorCoresAgreeWithTheReference) {
  for (const Shape& shape : kShapes) {
    for (const auto& [tokens, positions] :
         {std::pair<int64_t, int64_t>{1, 1}, {1, 300}, {3, 64}, {65, 65}, {130, 200}, {64, 513}}) {
      for (const int64_t k : {0, 1, 64, 400}) {
        if (skip_case()) continue;
        Problem problem(shape, tokens, positions);
        problem.round_inputs();
        if (k > 0) problem.select(k);
        expect_near(all(problem), problem.all("reference"),
                    4 * problem.tolerance() + 2 * kUnitBf16 * problem.largest_value());
      }
    }
  }
  const std::vector<std::string> ran = explain(context());
  EXPECT_EQ(std::count(ran.begin(), ran.end(), "mla_dense: cuda_mma"), 1);
}

// Where every selected position of a tile, or of all before it, is another query's.
TEST_F(MlaDenseCuda, ValuesThatAreNotFiniteReachTheirQueriesAlone) {
  Problem problem({2, 128, 64, 128}, 70, 300);
  problem.round_inputs();
  problem.select(30);
  const Floats clean = all(problem);
  problem.poison_position(280);
  const Floats got = all(problem);
  int64_t hit = 0;
  for (int64_t t = 0; t < problem.tokens(); ++t) {
    const int32_t* list = problem.args(t, t + 1).indices;
    const bool sees = std::find(list, list + 30, 280) != list + 30;
    hit += sees ? 1 : 0;
    for (int64_t i = t * problem.row(); i < (t + 1) * problem.row(); ++i) {
      ASSERT_TRUE(sees ? std::isnan(got[i]) : got[i] == clean[i]) << t;
    }
  }
  EXPECT_GT(hit, 0) << "nobody sees it";
}

}  // namespace
}  // namespace tamis
