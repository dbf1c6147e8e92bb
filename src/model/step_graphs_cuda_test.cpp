#include <gtest/gtest.h>

#include "model/step_graphs.h"

namespace tamis {
namespace {

// Copies a counter's low byte; counts how often the host was asked to.
class StepGraphsCuda : public ::testing::Test {
 protected:
  void step(int64_t key, int byte) {
    device_.fill(from_.data(), byte, 64);
    graphs_.run(place_, {key, 5}, [&] {
      ++calls_;
      device_.copy(to_.data(), from_.data(), 64);
    });
    char out[64];
    device_.download(out, to_.data(), 64);
    EXPECT_EQ(out[63], byte);
  }

  DeviceContext device_;
  DeviceBuffer from_{device_, 64, "a test"}, to_{device_, 64, "a test"};
  Place place_{&device_};
  StepGraphs graphs_;
  int calls_ = 0;
};

TEST_F(StepGraphsCuda, RunsThenRecordsThenReplays) {
  for (int i = 1; i <= 6; ++i) {
    step(1, i);
    EXPECT_EQ(calls_, std::min(i, 2)) << i;
  }
  step(2, 9);  // another key
  EXPECT_EQ(calls_, 3);
  step(1, 10);
  EXPECT_EQ(calls_, 3);
  EXPECT_EQ(graphs_.recordings(), 1);
}

TEST_F(StepGraphsCuda, RecordsAgainAfterMemoryHasMoved) {
  for (int i = 1; i <= 3; ++i) step(1, i);
  EXPECT_EQ(calls_, 2);
  ++place_.moves;
  for (int i = 4; i <= 6; ++i) step(1, i);
  EXPECT_EQ(calls_, 4);
  device_.scratch(3, 1 << 20);
  for (int i = 7; i <= 9; ++i) step(1, i);
  EXPECT_EQ(calls_, 6);
  EXPECT_EQ(graphs_.recordings(), 3);
}

TEST_F(StepGraphsCuda, ForgetsTheOldestKey) {
  for (int64_t key = 0; key <= static_cast<int64_t>(StepGraphs::kMost); ++key) {
    step(key, 1);
    step(key, 2);
  }
  const int before = calls_;
  step(StepGraphs::kMost, 3);
  EXPECT_EQ(calls_, before);
  step(0, 4);
  EXPECT_EQ(calls_, before + 1);
}

}  // namespace
}  // namespace tamis
