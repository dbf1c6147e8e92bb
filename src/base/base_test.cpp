#include <gtest/gtest.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "base/thread_pool.h"
#include "base/utf8.h"

namespace tamis {
namespace {

TEST(Utf8, RejectsWhatRfc3629Rejects) {
  for (const char* bad :
       {"\xFF", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE4\xB8", "\x80"}) {
    EXPECT_EQ(utf8_sequence_length(bad), 0u) << printable(bad);
  }
  EXPECT_EQ(utf8_sequence_length("\xE4\xB8\xAD"), 3u);
  EXPECT_EQ(utf8_first_invalid("ab\xFF"), 2u);
}

TEST(Utf8, LossyReplacesMaximalParts) {
  EXPECT_EQ(utf8_lossy("a\xE4\xB8z"), "a\xEF\xBF\xBDz");  // one cut character, one mark
  EXPECT_EQ(utf8_lossy("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(utf8_lossy("\xF0\x9F\x98\x80"), "\xF0\x9F\x98\x80");
}

TEST(Json, RefusesDuplicatesAndDepth) {
  EXPECT_THROW(parse_json(R"({"a":1,"a":2})", "t"), InputError);
  EXPECT_NO_THROW(parse_json(R"({"a":{"a":1},"b":{"a":2}})", "t"));
  EXPECT_THROW(parse_json(std::string(200, '[') + std::string(200, ']'), "t"), InputError);
  EXPECT_THROW(parse_json(std::string(1000000, '['), "t"), InputError);
  EXPECT_THROW(parse_json("{\"a\":\"\xFF\"}", "t"), InputError);
  EXPECT_EQ(parse_json("[1,2]", "t").size(), 2u);
}

TEST(ThreadPool, RunsEveryTaskOnceAndRethrows) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int repeat = 0; repeat < 50; ++repeat) {
      std::vector<std::atomic<int>> seen(103);
      pool.run(103, [&](int64_t i, int t) {
        ASSERT_LT(t, threads);
        ++seen[static_cast<size_t>(i)];
      });
      for (const auto& s : seen) ASSERT_EQ(s, 1);
    }
    EXPECT_THROW(pool.run(10,
                          [](int64_t i, int) {
                            if (i == 3) throw InputError("x");
                          }),
                 InputError);
    pool.run(1, [](int64_t, int) {});
  }
}

}  // namespace
}  // namespace tamis
