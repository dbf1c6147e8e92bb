#include "server/access.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <random>
#include <vector>

namespace tamis::server {
namespace {

HttpRequest with_key(const std::string& key) {
  HttpRequest r;
  r.headers = {{"Authorization", "Bearer " + key}};
  return r;
}

AccessOptions with_keys(std::vector<std::string> keys) {
  AccessOptions options;
  options.keys = std::move(keys);
  return options;
}

TEST(Access, KeysAreFoundByNumber) {
  const AccessControl access(with_keys({"first-key-1", "second-key"}));
  EXPECT_EQ(access.key_of(with_key("first-key-1")), 0);
  EXPECT_EQ(access.key_of(with_key("second-key")), 1);
  for (const char* bad : {"", "first-key-", "first-key-12", "First-key-1", "second-kez"}) {
    EXPECT_EQ(access.key_of(with_key(bad)), -1) << bad;
  }
  EXPECT_EQ(AccessControl({}).key_of(with_key("any")), 0);
}

// Welch's t of the times of keys that are wrong in their first byte and of keys that are wrong in
// their last one. Where the comparison stopped at the first difference it would be far off 0; by
// chance it passes 4.5 once in 150,000 runs. Times that an interruption has stretched are left out.
TEST(Access, TheTimeTellsNothingOfAWrongKey) {
  const std::string key(200, 'k');
  const AccessControl access(with_keys({key}));
  std::string early = key, late = key;
  early.front() = late.back() = 'x';
  const HttpRequest requests[] = {with_key(early), with_key(late)};
  std::mt19937 rng(5);
  double sum[2] = {}, squares[2] = {}, count[2] = {};
  for (int i = 0; i < 100'000; ++i) {
    const size_t which = rng() & 1;
    const auto begin = std::chrono::steady_clock::now();
    const int found = access.key_of(requests[which]);
    const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - begin;
    ASSERT_EQ(found, -1);
    if (time.count() > 20'000) continue;
    count[which] += 1;
    sum[which] += time.count();
    squares[which] += time.count() * time.count();
  }
  double difference = 0, variance = 0;
  for (const int w : {0, 1}) {
    const double mean = sum[w] / count[w];
    difference += w == 0 ? mean : -mean;
    variance += (squares[w] / count[w] - mean * mean) / count[w];
  }
  EXPECT_LT(std::abs(difference / std::sqrt(variance)), 4.5);
}

}  // namespace
}  // namespace tamis::server
