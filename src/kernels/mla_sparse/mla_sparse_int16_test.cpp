// mla_sparse with products of integers.
#include "kernels/mla_sparse/mla_sparse_int16.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstring>

#include "kernels/mla_sparse/test_problem.h"
#include "kernels/tolerance.h"

namespace tamis {
namespace {

using mla_sparse_test::Problem;
using mla_sparse_test::Shape;

constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFP8};

std::vector<float> part(const std::vector<float>& x, int64_t begin, int64_t end) {
  return {x.begin() + begin, x.begin() + end};
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

double rms(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

// Few weights lie so near a boundary that an error of float moves their integer: on the whole the
// result is far nearer to the reference than the integers are to the exact result.
TEST(MlaSparseInt16, AgreesWithTheReferenceAndReadsSelectedRowsAlone) {
  for (const Shape& shape :
       {Shape{1, 512, 64, 128}, Shape{2, 512, 64, 192}, Shape{3, 32, 8, 129}, Shape{4, 32, 0, 255},
        Shape{5, 40, 4, 256}, Shape{10, 48, 6, 257}, Shape{16, 512, 64, 300},
        Shape{33, 128, 16, 131}, Shape{7, 136, 17, 800}, Shape{8, 1040, 64, 170}}) {
    for (const KvFormat format : kFormats) {
      Problem problem(shape, format);
      problem.poison_unselected();
      const auto exact = problem.all("reference");
      problem.int16 = true;
      const auto want = problem.all("reference"), got = problem.all("simd");
      const double tolerance = problem.int16_tolerance();
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_NEAR(got[i], want[i], tolerance)
            << "heads " << shape.heads << " kv_lora " << shape.kv_lora << " k " << shape.k
            << " format " << static_cast<int>(format) << " element " << i;
      }
      EXPECT_LE(rms(got, want), rms(want, exact) / 8) << "other integers";
    }
  }
}

// How far integers move a result. Values are normal: no row here reaches 6 deviations, so a step of
// a latent is below 6 / limit and its error, uniform in half a step, deviates by step / sqrt(12).
// The rows of q have norm 1 with the scale and those of k 1 / scale, so a score deviates by the
// same for each of the two; six deviations bound all of them, and move a weighted mean of values by
// twice that times the largest. Then half a step of each weight's integer and of each value.
TEST(MlaSparseInt16, TheReferenceLiesNearTheExactResult) {
  for (const Shape& shape :
       {Shape{4, 512, 64, 128}, Shape{3, 40, 4, 300}, Shape{2, 1040, 16, 165}}) {
    Problem problem(shape, KvFormat::kF32);
    const auto exact = problem.all("reference");
    problem.int16 = true;
    const auto rounded = problem.all("reference");
    const double v = problem.largest_value(), step = 6.0 / int16_limit(shape.kv_lora);
    ASSERT_LE(v, 6);
    const double score = std::sqrt(2.0) * step / std::sqrt(12.0);
    const auto n = static_cast<double>(std::min<int64_t>(shape.k, 700));
    const double bound = v * (2 * 6 * score + n * 0.5 / kWeightLimit) + step / 2;
    for (size_t i = 0; i < exact.size(); ++i) ASSERT_NEAR(rounded[i], exact[i], bound);
    EXPECT_GT(rms(rounded, exact), 0) << "nothing is rounded";
  }
}

TEST(MlaSparseInt16, BitsDependOnTheTokenAlone) {
  for (const KvFormat format : kFormats) {
    for (const Shape& shape : {Shape{16, 512, 64, 600}, Shape{5, 40, 4, 300}, Shape{1, 32, 8, 164},
                               Shape{40, 128, 16, 130}}) {
      Problem problem(shape, format), moved(shape, format, 99);
      problem.int16 = moved.int16 = true;
      const auto whole = problem.all("simd");
      const int64_t n = problem.tokens(), row = problem.row();
      for (const int threads : {1, 3}) {
        EXPECT_TRUE(same_bits(whole, moved.all("simd", threads)));
        for (const int64_t t : {int64_t{0}, int64_t{7}, int64_t{11}, n - 1}) {
          EXPECT_TRUE(same_bits(part(whole, t * row, (t + 1) * row),
                                problem.run("simd", t, t + 1, threads)));
        }
        const auto tail = problem.run("simd", 7, n, threads);
        EXPECT_TRUE(same_bits(part(whole, 7 * row, n * row), tail));
      }
    }
  }
}

TEST(MlaSparseInt16, PromptsSharingTilesHaveTheBitsOfTheirTokensAlone) {
  for (const int64_t heads : {1, 5, 16}) {
    for (const int64_t k : {700, 130}) {  // every row whole; rows from position 130 on selected
      Problem problem({heads, 40, 12, k}, KvFormat::kBF16, 1, 700, 280);
      problem.int16 = true;
      const auto whole = problem.all("simd");
      EXPECT_TRUE(same_bits(whole, problem.all("simd", 3)));
      if (k == 700) {
        EXPECT_TRUE(same_bits(whole, problem.run("simd", 0, problem.tokens(), 2, true)));
      }
      for (int64_t t = 0; t < problem.tokens(); t += 11) {
        for (const int threads : {1, 4}) {  // chunk after chunk, or shared
          EXPECT_TRUE(same_bits(part(whole, t * problem.row(), (t + 1) * problem.row()),
                                problem.run("simd", t, t + 1, threads)))
              << "heads " << heads << " token " << t;
        }
      }
    }
  }
}

// Chunks of several groups: their sums and those of other chunks meet another way.
TEST(MlaSparseInt16, LongListsHaveTheBitsOfTheirTokensAlone) {
  Problem problem({2, 32, 8, 9000}, KvFormat::kF32, 1, 9000, 3);
  problem.int16 = true;
  const auto want = problem.all("reference"), whole = problem.all("simd", 1);
  const double tolerance = problem.int16_tolerance();
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(whole[i], want[i], tolerance) << "element " << i;
  }
  for (int64_t t = 0; t < problem.tokens(); ++t) {  // the chunks of a token alone are shared
    EXPECT_TRUE(same_bits(part(whole, t * problem.row(), (t + 1) * problem.row()),
                          problem.run("simd", t, t + 1, 2)));
  }
}

TEST(MlaSparseInt16, NanOfALaterPositionStaysOutOfATokenThatSharesItsTile) {
  Problem problem({4, 40, 12, 400}, KvFormat::kF32, 1, 400, 280);
  problem.int16 = true;
  const auto clean = problem.all("simd", 1);
  constexpr int64_t kBefore = 1 + 70, kFirst = 120, kPoisoned = 300;  // tokens of other sequences
  problem.poison(2, kPoisoned);
  const auto got = problem.all("simd", 1);
  for (int64_t t = 0; t < problem.tokens(); ++t) {
    const bool sees = kFirst + t - kBefore >= kPoisoned && t < kBefore + 280;
    for (int64_t i = t * problem.row(); i < (t + 1) * problem.row(); ++i) {
      const auto at = static_cast<size_t>(i);
      ASSERT_EQ(std::isnan(got[at]), sees) << "token " << t;
      if (!sees) {
        ASSERT_EQ(got[at], clean[at]) << "token " << t;
      }
    }
  }
}

TEST(MlaSparseInt16, NanInAQueryStaysInItsRow) {
  Problem problem({3, 128, 16, 200}, KvFormat::kF32);
  problem.int16 = true;
  const auto clean = problem.all("simd");
  constexpr int64_t kToken = 8;                     // sees 700 positions
  problem.q()[kToken * problem.row() + 128] = NAN;  // head 1
  const auto got = problem.all("simd");
  for (size_t i = 0; i < got.size(); ++i) {
    const bool hit = i / 128 == kToken * 3 + 1;
    ASSERT_EQ(std::isnan(got[i]), hit);
    if (!hit) {
      ASSERT_EQ(got[i], clean[i]);
    }
  }
}

// Down to the last bit what is computed without integers, and with one entry more no longer.
TEST(MlaSparseInt16, FewEntriesAreAttendedToInFloat) {
  for (const char* name : {"reference", "simd"}) {
    for (const int64_t k : {kFewestInt16Entries - 1, kFewestInt16Entries}) {
      Problem problem({5, 40, 12, k}, KvFormat::kBF16);
      const auto exact = problem.all(name);
      problem.int16 = true;
      EXPECT_EQ(same_bits(problem.all(name), exact), k < kFewestInt16Entries) << name;
    }
  }
}

// AVX-512 against AVX2; on a machine without AVX-512 there is but one to compare.
TEST(MlaSparseInt16, EveryInstructionSetGivesTheSameBits) {
  const int64_t supported = hwy::SupportedTargets();
  if ((supported & HWY_AVX2) == 0) return;
  Problem problem({16, 520, 64, 600}, KvFormat::kFP8);
  problem.int16 = true;
  const auto widest = problem.all("simd");
  hwy::GetChosenTarget().Update(HWY_AVX2);
  const auto narrower = problem.all("simd");
  hwy::GetChosenTarget().Update(supported);
  EXPECT_TRUE(same_bits(widest, narrower));
}

// One token with `length` positions that all hold `value`, for queries that hold `q`: every product
// is as large as it can be, and the result is `value`.
void expect_constant(int64_t kv_lora, int64_t length, float value, float q) {
  const PagedCache cache({kv_lora, 64, 0, KvFormat::kF32, KvFormat::kF32}, {length}, 1, 1);
  const std::vector<float> row(static_cast<size_t>(kv_lora + 64), value);
  for (int64_t s = 0; s < length; ++s) {
    write_latent(cache.layer(), cache.sequences()[0], s, row.data(), row.data() + kv_lora);
  }
  constexpr int64_t kHeads = 7;
  const std::vector<float> queries(static_cast<size_t>(kHeads * (kv_lora + 64)), q);
  std::vector<float> out(static_cast<size_t>(kHeads * kv_lora), NAN);
  TokenList tokens;
  tokens.add(0, length - 1);
  MlaSparseArgs a;
  a.q_latent = queries.data();
  a.q_pe = queries.data() + kHeads * kv_lora;
  a.q_pe_head_stride = 64;
  a.heads = kHeads;
  a.kv = cache.layer();
  a.tokens = tokens.map(cache, 0, 1);
  a.softmax_scale = 1;
  a.int16 = true;
  a.out = out.data();
  for (const char* name : {"reference", "simd"}) {
    KernelContext context(2);
    context.force("mla_sparse", name);
    std::fill(out.begin(), out.end(), NAN);
    mla_sparse(context, a);
    // Equal scores: every weight is the largest integer. A handful of roundings for each tile.
    const double tolerance = std::fabs(value) * 4 * kUnitF32 * static_cast<double>(length / 64 + 4);
    for (const float x : out) ASSERT_NEAR(x, value, tolerance) << name << " of " << length;
  }
}

TEST(MlaSparseInt16, LargestProductsFitAndTinyRowsCountAsZero) {
  for (const int64_t kv_lora : {16, 512, 1024}) {
    for (const int64_t length : {128, 256, 300}) {
      expect_constant(kv_lora, length, 3.0F, 0.5F);
      expect_constant(kv_lora, length, -1e4F, 1e-3F);
    }
  }
  expect_constant(512, 165, 0.0F, 1.0F);
  expect_constant(512, 165, 2.0F, 1e-36F);
}

TEST(MlaSparseInt16, QuantizesToTheNearest) {
  const float x[] = {4, -4, 2.0009F, 0, -0.00097F, 1e-9F};
  int16_t n[6];
  EXPECT_EQ(quantize_int16(x, 6, 2047, n), 4.0F / 2047);
  EXPECT_EQ(n[0], 2047);
  EXPECT_EQ(n[1], -2047);
  EXPECT_EQ(n[2], 1024);  // 1023.96
  EXPECT_EQ(n[3], 0);
  EXPECT_EQ(n[4], 0);  // -0.496
  EXPECT_EQ(n[5], 0);
  const float bad[] = {1, INFINITY};
  EXPECT_TRUE(std::isnan(quantize_int16(bad, 2, 2047, n)));
  const float tiny[] = {1e-31F, -1e-31F};
  EXPECT_EQ(quantize_int16(tiny, 2, 2047, n), 0);
  EXPECT_EQ(n[0], 0);
  EXPECT_EQ(quantize_int16(x, 0, 2047, n), 0);
}

}  // namespace
}  // namespace tamis
