#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/step_io/step_io.h"
#include "kernels/test_weight.h"
#include "support/cuda_device.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

class StepIoCuda : public CudaTest {};

TEST_F(StepIoCuda, BringsWhatTheHostSays) {
  for (const int64_t room : {16, 32, 4096, 16 * 70'000}) {
    PinnedBuffer host(*context().device(), room);
    for (const int64_t bytes : {int64_t{0}, int64_t{16}, room / 2 / 16 * 16, room - 16}) {
      if (bytes > room - 16) continue;
      for (int64_t i = 16; i < room; ++i) host.data()[i] = static_cast<std::byte>(i * 7 / 5);
      std::memcpy(host.data(), &bytes, sizeof(bytes));
      const int32_t number = static_cast<int32_t>(bytes) - 100;
      std::memcpy(host.data() + sizeof(bytes), &number, sizeof(number));
      Device<uint8_t> to(context(), room);
      Device<int32_t> marks(context(), std::vector<int32_t>(1003, 77));
      step_in(context(),
              {host.data(), room, reinterpret_cast<std::byte*>(to.data()), marks.data(), 1000});
      const std::vector<uint8_t> got = to.read();
      EXPECT_EQ(std::memcmp(got.data(), host.data() + 16, static_cast<size_t>(bytes)), 0) << bytes;
      for (int64_t i = bytes; i < room; ++i) ASSERT_EQ(got[i], 0xFF) << "wrote past the end";
      std::vector<int32_t> want(1003, -1);
      want[1000] = 0;
      want[1001] = number;
      want[1002] = 77;
      EXPECT_EQ(marks.read(), want);
    }
  }
}

// Rows of `vocab` logits, each of a sequence of its own, and one sequence more without logits.
class StepOutCuda : public StepIoCuda {
 protected:
  struct Result {
    std::vector<int32_t> best, failed;
  };
  Result run(const std::vector<float>& logits, int64_t rows, int64_t vocab, int32_t mark_before) {
    std::vector<int32_t> token(static_cast<size_t>(rows)), sequence(token.size());
    for (int64_t r = 0; r < rows; ++r) {
      token[r] = static_cast<int32_t>(rows - 1 - r);
      sequence[token[r]] = static_cast<int32_t>(r);
    }
    std::vector<int32_t> marks(static_cast<size_t>(rows + 1), -1);
    marks.back() = mark_before;
    Device<float> x(context(), logits);
    Device<int32_t> t(context(), token), s(context(), sequence), failed(context(), marks);
    Device<uint32_t> arrivals(context(), std::vector<uint32_t>{0, 8});
    PinnedBuffer out(*context().device(), (2 * rows + 2) * 4);
    std::memset(out.data(), 0x55, static_cast<size_t>(out.bytes()));
    StepOutArgs a;
    a.logits = x.data();
    a.rows = rows;
    a.vocab = vocab;
    a.token = t.data();
    a.sequence = s.data();
    a.mark = 12;
    a.failed = failed.data();
    a.sequences = rows + 1;
    a.arrivals = arrivals.data();
    a.host_best = reinterpret_cast<int32_t*>(out.data());
    a.host_failed = a.host_best + rows;
    a.host_done = reinterpret_cast<uint32_t*>(a.host_failed + rows + 1);
    step_out(context(), a);
    // What is said to be done can be read: nobody waits for the device.
    while (*static_cast<volatile uint32_t*>(a.host_done) != 8 && !step_idle(context())) {
    }
    EXPECT_EQ(*a.host_done, 8u);
    return {{a.host_best, a.host_best + rows}, {a.host_failed, a.host_failed + rows + 1}};
  }
};

TEST_F(StepOutCuda, IsTheFirstOfTheLargest) {
  for (const int64_t vocab : {1, 3, 31, 1024, 4097, 8192, 129'280}) {
    for (const int64_t rows : {0, 1, 2, 7, 256}) {
      if (rows * vocab > 1'000'000) continue;
      for (const int kind : {0, 1, 2, 3}) {
        if (skip_case()) continue;
        std::vector<float> x = random_floats(rows * vocab, 5);
        for (float& v : x) {
          if (kind == 1) v = std::round(v);  // many equal
          if (kind == 2) v = 0 * v;          // zeros of both signs
          if (kind == 3) v = -std::fabs(v) * 1e38F;
        }
        std::replace_if(
            x.begin(), x.end(), [](float v) { return !std::isfinite(v); }, -3e38F);
        const Result got = run(x, rows, vocab, 4);
        for (int64_t r = 0; r < rows; ++r) {
          const float* row = &x[r * vocab];
          ASSERT_EQ(got.best[r], std::max_element(row, row + vocab) - row) << vocab << " " << kind;
          ASSERT_EQ(got.failed[r], -1);
        }
        ASSERT_EQ(got.failed.back(), 4);
      }
    }
  }
}

TEST_F(StepOutCuda, MarksRowsThatAreNotFinite) {
  for (const float bad : {std::nanf(""), kInf, -kInf}) {
    for (const int64_t at : {int64_t{0}, int64_t{4097}, int64_t{8191}}) {
      std::vector<float> x = random_floats(3 * 8192, 6);
      x[8192 + at] = bad;
      const Result got = run(x, 3, 8192, -1);
      EXPECT_EQ(got.failed, (std::vector<int32_t>{-1, 12, -1, -1}));
      for (const int64_t r : {0, 2}) {
        const float* row = &x[r * 8192];
        EXPECT_EQ(got.best[r], std::max_element(row, row + 8192) - row);
      }
    }
  }
}

}  // namespace
}  // namespace tamis
