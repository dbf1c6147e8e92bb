#include <cstring>

#include "kernels/mla_sparse/mla_sparse_impl.h"
#include "kernels/mla_sparse/test_problem.h"
#include "kernels/tolerance.h"
#include "support/cuda_cache.h"

namespace tamis {
using namespace mla_sparse_test;

namespace {

using Floats = std::vector<float>;

constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFP8};

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

Floats part(const Floats& x, int64_t begin, int64_t end) {
  return {x.begin() + begin, x.begin() + end};
}

// The inputs of a Problem on the device.
class OnDevice {
 public:
  OnDevice(KernelContext& context, const Problem& p)
      : context_(context), problem_(p), cache_(context, p.cache()) {}

  struct Result {
    Floats out, mass;
  };

  // Tokens [begin, end); the float32 kernel, or the tensor cores' if `native`.
  Result run(int64_t begin, int64_t end, bool native, bool all_visible = false,
             int64_t mass_stride = 0) const {
    return run_with(begin, end, native, all_visible, mass_stride,
                    [&](const MlaSparseArgs& a) { mla_sparse(context_, a); });
  }
  Floats all(bool native) const { return run(0, problem_.tokens(), native).out; }

  // Every token by the tensor cores, once for each way of cutting the work.
  std::vector<Floats> all_plans(bool all_visible) const {
    std::vector<Floats> results;
    size_t plans = 1;
    for (size_t i = 0; i < plans; ++i) {
      const auto call = [&](const MlaSparseArgs& a) {
        const std::vector<MlaMmaPlan> list = mla_sparse_mma_plans(context_, a);
        plans = list.size();
        mla_sparse_mma_run(context_, a, list.at(i));
      };
      results.push_back(run_with(0, problem_.tokens(), true, all_visible, 0, call).out);
    }
    return results;
  }

 private:
  template <typename Call>
  Result run_with(int64_t begin, int64_t end, bool native, bool all_visible, int64_t mass_stride,
                  const Call& call) const {
    MlaSparseArgs a = problem_.args(begin, end, all_visible);
    const int64_t n = end - begin, heads = a.heads, rows = n * heads;
    const DeviceTokens tokens(context_, a.tokens, cache_);
    const Device<float> q(context_, Floats(a.q_latent, a.q_latent + problem_.row() * n));
    const Device<float> q_pe(context_, Floats(a.q_pe, a.q_pe + rows * a.q_pe_head_stride));
    const Device<int32_t> indices(
        context_, all_visible ? std::vector<int32_t>{}
                              : std::vector<int32_t>(a.indices, a.indices + n * a.k));
    const Device<float> out(context_, problem_.row() * n), mass(context_, n * mass_stride);
    a.q_latent = q.data();
    a.q_pe = q_pe.data();
    if (!all_visible) a.indices = indices.data();
    a.kv = cache_.layer();
    a.tokens = tokens.map();
    a.round_bf16 = native;
    a.out = out.data();
    a.mass = mass_stride == 0 ? nullptr : mass.data();
    a.mass_stride = mass_stride;
    call(a);
    return {out.read(), mass.read()};
  }

  KernelContext& context_;
  const Problem& problem_;
  DeviceCache cache_;
};

class MlaSparseCuda : public CudaTest {
 protected:
  void expect_reference(Problem& problem, bool native, double tolerance) {
    const Floats want = problem.all("reference"), got = OnDevice(context(), problem).all(native);
    double worst = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double error = std::fabs(static_cast<double>(got[i]) - want[i]);
      ASSERT_LE(error, tolerance) << "element " << i << " of " << want.size() << ": " << got[i]
                                  << ", want " << want[i];
      worst = std::max(worst, error);
    }
    if (worst > 0) {
      EXPECT_GT(worst, tolerance / 1e5) << "the bound says nothing";
    }
  }

  void expect_bits_of_token_alone(const Shape& shape, KvFormat format, bool native) {
    if (skip_case()) return;
    Problem problem(shape, format), moved(shape, format, 99);
    if (native) {
      problem.round_queries();
      moved.round_queries();
    }
    const OnDevice device(context(), problem), other(context(), moved);
    const int64_t n = problem.tokens(), row = problem.row();
    const Floats whole = device.all(native);
    EXPECT_TRUE(same_bits(whole, other.all(native)));
    for (int64_t t = 0; t < n; ++t) {
      EXPECT_TRUE(same_bits(part(whole, t * row, (t + 1) * row), device.run(t, t + 1, native).out))
          << t;
    }
    EXPECT_TRUE(same_bits(part(whole, 7 * row, n * row), device.run(7, n, native).out));
    for (int repeat = 0; repeat < repeats(20); ++repeat) {
      ASSERT_TRUE(same_bits(whole, device.all(native)));
    }
  }
};

TEST_F(MlaSparseCuda, AgreesWithTheReferenceAndReadsSelectedRowsAlone) {
  const Shape shapes[] = {{1, 512, 64, 3},    {2, 512, 64, 64}, {3, 32, 8, 65},
                          {4, 32, 8, 1},      {5, 40, 4, 63},   {10, 48, 6, 257},
                          {16, 512, 64, 300}, {33, 128, 16, 4}, {7, 136, 16, 800}};
  for (const Shape& shape : shapes) {
    for (const KvFormat format : kFormats) {
      if (skip_case()) continue;
      SCOPED_TRACE("heads " + std::to_string(shape.heads) + " kv_lora " +
                   std::to_string(shape.kv_lora) + " k " + std::to_string(shape.k) + " format " +
                   std::to_string(static_cast<int>(format)));
      Problem problem(shape, format);
      problem.poison_unselected();
      expect_reference(problem, false, problem.tolerance());
    }
  }
}

// The weights are rounded to bf16 before the value product, here before they are divided by their
// sum and in the reference after: each moves a weighted mean by at most a unit of the largest
// value.
TEST_F(MlaSparseCuda, TensorCoresAgreeWithTheReference) {
  for (const int64_t heads : {1, 4, 8, 16, 17, 32, 64, 65, 128}) {
    for (const int64_t k : {16, 64, 304, 800}) {
      for (const KvFormat format : {KvFormat::kBF16, KvFormat::kFP8}) {
        if ((heads > 16 && k != 304) || skip_case()) continue;
        SCOPED_TRACE("heads " + std::to_string(heads) + " k " + std::to_string(k) + " format " +
                     std::to_string(static_cast<int>(format)));
        Problem problem({heads, 512, 64, k}, format);
        problem.round_queries();
        problem.poison_unselected();
        const double exact = problem.tolerance();
        expect_reference(problem, true, exact * 4 + 2 * kUnitBf16 * problem.largest_value());
      }
    }
  }
}

// Lists of up to four chunks: cut among blocks or not, 16 or 64 heads a block.
TEST_F(MlaSparseCuda, EveryWayOfCuttingTheWorkGivesTheSameBits) {
  for (const KvFormat format : {KvFormat::kBF16, KvFormat::kFP8}) {
    for (const int64_t heads : {4, 70}) {
      for (const bool all_visible : {false, true}) {
        if (skip_case()) continue;
        Problem problem({heads, 512, 64, 2048}, format, 1, 2300);
        problem.round_queries();
        if (!all_visible) problem.poison_unselected();
        const OnDevice device(context(), problem);
        const Floats want = device.run(0, problem.tokens(), true, all_visible).out;
        const std::vector<Floats> got = device.all_plans(all_visible);
        EXPECT_GE(got.size(), 2U);
        for (size_t i = 0; i < got.size(); ++i) {
          EXPECT_TRUE(same_bits(want, got[i])) << "plan " << i << ", heads " << heads;
        }
        if (all_visible) continue;
        const double exact = problem.tolerance();
        expect_reference(problem, true, exact * 4 + 2 * kUnitBf16 * problem.largest_value());
      }
    }
  }
}

TEST_F(MlaSparseCuda, RoundsWeightsInFloat32Too) {
  Problem problem({5, 40, 4, 300}, KvFormat::kBF16);
  const double exact = problem.tolerance();
  expect_reference(problem, true, exact + 2 * kUnitBf16 * problem.largest_value());
}

TEST_F(MlaSparseCuda, BitsDependOnTheTokenAlone) {
  for (const KvFormat format : kFormats) {
    expect_bits_of_token_alone({16, 512, 64, 600}, format, false);
    expect_bits_of_token_alone({5, 40, 4, 300}, format, false);
    if (format != KvFormat::kF32) {
      expect_bits_of_token_alone({16, 512, 64, 608}, format, true);
      expect_bits_of_token_alone({64, 512, 64, 608}, format, true);
    }
  }
}

TEST_F(MlaSparseCuda, AllVisibleAsIndicesOrNotGivesTheSameBits) {
  for (const bool native : {false, true}) {
    for (const int64_t heads : {4, 32}) {
      Problem problem({heads, 512, 64, 700}, KvFormat::kFP8);
      if (native) problem.round_queries();
      const OnDevice device(context(), problem);
      const Floats whole = device.all(native);
      EXPECT_TRUE(same_bits(whole, device.run(0, problem.tokens(), native, true).out));
      EXPECT_TRUE(same_bits(part(whole, 10 * problem.row(), 11 * problem.row()),
                            device.run(10, 11, native, true).out));
    }
  }
}

TEST_F(MlaSparseCuda, MassIsTheHeadSummedWeight) {
  for (const bool all_visible : {false, true}) {
    for (const int64_t heads : {3, 16}) {
      Problem problem({heads, 128, 16, 100}, KvFormat::kF32);
      const int64_t stride = 701, n = problem.tokens();
      MlaSparseArgs a = problem.args(0, n, all_visible);
      Floats out(static_cast<size_t>(n * problem.row())), mass(static_cast<size_t>(n * stride));
      a.out = out.data();
      a.mass = mass.data();
      a.mass_stride = stride;
      mla_sparse(reference(), a);
      const auto got = OnDevice(context(), problem).run(0, n, false, all_visible, stride);
      const double tolerance = problem.tolerance();
      for (size_t i = 0; i < mass.size(); ++i) {
        // A weight's own error is at most that of a mean of values of size 1; `heads` are added.
        ASSERT_NEAR(got.mass[i], mass[i],
                    static_cast<double>(heads) * tolerance / problem.largest_value() +
                        static_cast<double>(heads) * static_cast<double>(heads) * kUnitF32)
            << i;
      }
    }
  }
}

TEST_F(MlaSparseCuda, NanInAQueryStaysInItsTokenAndIsNotHidden) {
  for (const bool native : {false, true}) {
    Problem problem({3, 512, 64, 112}, KvFormat::kBF16);
    problem.round_queries();
    const Floats clean = OnDevice(context(), problem).all(native);
    problem.q()[4 * problem.row() + 512] = NAN;  // token 4, head 1
    const Floats got = OnDevice(context(), problem).all(native);
    for (int64_t i = 0; i < static_cast<int64_t>(got.size()); ++i) {
      const bool hit = i / 512 == 4 * 3 + 1;
      const auto at = static_cast<size_t>(i);
      ASSERT_EQ(std::isnan(got[at]), hit) << i;
      if (!hit) {
        ASSERT_EQ(got[at], clean[at]) << i;
      }
    }
  }
}

}  // namespace
}  // namespace tamis
