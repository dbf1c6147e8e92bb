#include <gtest/gtest.h>

#include <limits>

#include "kernels/memory.h"
#include "model/staging.h"

namespace tamis {
namespace {

template <typename T>
std::vector<T> read(KernelContext& context, const T* device, int64_t n) {
  std::vector<T> out(static_cast<size_t>(n));
  get(context, out.data(), device, n * static_cast<int64_t>(sizeof(T)));
  return out;
}

// Two sequences: three tokens that reach into a second page, and one token of a third page.
class StagingCuda : public ::testing::Test {
 protected:
  StagingCuda() : context_(1, Backend::kCuda) {
    act_.place.device = context_.device();
    batch_.tokens = {4, sequence_.data(), position_.data(), tables_.data()};
    batch_.ids = ids_.data();
    batch_.sequences = slices_;
    batch_.logit_rows = rows_;
    batch_.logits = logits_.data();
    batch_.failed_layer = failed_.data();
  }

  KernelContext context_;
  Activations act_;
  std::vector<int32_t> ids_{5, 6, 7, 8}, sequence_{0, 0, 0, 1}, position_{63, 64, 65, 128};
  std::vector<int32_t> first_{9, 4, 77}, second_{3, 2, 1}, rows_{2, 3}, failed_{5, 5};
  std::vector<KvSequence> tables_{{first_.data()}, {second_.data()}};
  std::vector<BatchSequence> slices_{{0, 3, false}, {3, 1, false}};
  std::vector<float> logits_ = std::vector<float>(2 * 10);
  Batch batch_;
};

TEST_F(StagingCuda, EverythingIsThere) {
  const StagedBatch s(context_, batch_, 10, act_);
  s.start();
  EXPECT_EQ(read(context_, s.ids, 4), ids_);
  EXPECT_EQ(read(context_, s.tokens.sequence, 4), sequence_);
  EXPECT_EQ(read(context_, s.tokens.position, 4), position_);
  EXPECT_EQ(read(context_, s.logit_rows, 2), rows_);
  EXPECT_EQ(read(context_, s.failed, 2), (std::vector<int32_t>{-1, -1}));
  EXPECT_EQ(s.tokens.max_context, 256);  // 129 positions
  const auto tables = read(context_, s.tokens.sequences, 2);
  EXPECT_EQ(read(context_, tables[0].pages, 2), (std::vector<int32_t>{9, 4}));
  EXPECT_EQ(read(context_, tables[1].pages, 3), second_);
}

TEST_F(StagingCuda, OnlyPagesMoveWhenAContextGrows) {
  const StagedBatch a(context_, batch_, 10, act_);
  position_[2] = 190;
  const StagedBatch b(context_, batch_, 10, act_);
  b.start();
  EXPECT_EQ(a.tokens.position, b.tokens.position);
  EXPECT_EQ(a.tokens.sequences, b.tokens.sequences);
  EXPECT_EQ(a.failed, b.failed);
  const auto tables = read(context_, b.tokens.sequences, 2);
  EXPECT_EQ(read(context_, tables[0].pages, 3), first_);
  EXPECT_EQ(read(context_, tables[1].pages, 3), second_);
}

TEST_F(StagingCuda, ResultsComeBack) {
  std::vector<float> want(20);
  for (size_t i = 0; i < want.size(); ++i) want[i] = static_cast<float>(i % 7);
  std::vector<int32_t> best(2);
  batch_.best = best.data();
  for (const bool wants_logits : {true, false}) {
    batch_.logits = wants_logits ? logits_.data() : nullptr;
    const StagedBatch s(context_, batch_, 10, act_);
    s.start();
    put(context_, s.logits, want.data(), 80);
    const std::vector<int32_t> marks{-1, 3};
    put(context_, s.failed, marks.data(), 8);
    s.check_logits(9);
    s.finish();
    EXPECT_EQ(failed_, marks);
    EXPECT_EQ(best, (std::vector<int32_t>{6, 3}));  // the first 6 of each row
    best = {-1, -1};
  }
  EXPECT_EQ(logits_, want);
}

TEST_F(StagingCuda, LogitsThatAreNotFiniteMarkTheirSequence) {
  std::vector<float> values(20, 1.0F);
  values[13] = std::numeric_limits<float>::quiet_NaN();
  const StagedBatch s(context_, batch_, 10, act_);
  s.start();
  put(context_, s.logits, values.data(), 80);
  s.check_logits(9);
  s.finish();
  EXPECT_EQ(failed_, (std::vector<int32_t>{-1, 9}));
}

}  // namespace
}  // namespace tamis
