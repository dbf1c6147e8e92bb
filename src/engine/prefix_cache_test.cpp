#include "engine/prefix_cache.h"

#include <gtest/gtest.h>

#include <numeric>

#include "engine/sampler.h"

namespace tamis {
namespace {

ModelConfig tiny_config() {
  ModelConfig c;
  c.layers.resize(1);
  c.kv_lora = 4;
  c.rope = 2;
  return c;
}

std::vector<int32_t> count_from(int32_t first, int64_t n) {
  std::vector<int32_t> v(static_cast<size_t>(n));
  std::iota(v.begin(), v.end(), first);
  return v;
}

class PrefixCacheTest : public ::testing::Test {
 protected:
  PrefixCacheTest() : config_(tiny_config()), pool_(config_, {8}, nullptr), prefixes_(pool_) {}

  // Keeps `tokens` as a request that has ended would.
  void keep(const std::string& root, const std::vector<int32_t>& tokens) {
    CachedSequence s;
    ASSERT_TRUE(pool_.reserve(s, static_cast<int64_t>(tokens.size())));
    s.length = static_cast<int64_t>(tokens.size());
    prefixes_.insert(root, tokens, s, true);
    pool_.release(s);
    audit({});
  }
  int64_t hit(const std::string& root, const std::vector<int32_t>& tokens) {
    CachedSequence s;
    const int64_t n = prefixes_.match(root, tokens, static_cast<int64_t>(tokens.size()), s);
    EXPECT_EQ(pages_for(n), static_cast<int64_t>(s.pages.size()));
    audit({&s});
    pool_.release(s);
    audit({});
    return n;
  }
  void audit(std::vector<const CachedSequence*> held) {
    held.push_back(&user_);
    EXPECT_EQ(pool_.audit(held, prefixes_.kept()), "");
    EXPECT_EQ(pool_.free_pages() + pool_.used_pages() + pool_.cached_pages(), pool_.total_pages());
  }

  ModelConfig config_;
  PagedCache pool_;
  PrefixCache prefixes_;
  CachedSequence user_;
};

TEST_F(PrefixCacheTest, FindsTheLongestCommonText) {
  const auto text = count_from(0, 150);
  EXPECT_EQ(hit("a", text), 0);
  keep("a", text);
  EXPECT_EQ(pool_.cached_pages(), 3);
  EXPECT_EQ(hit("a", text), 150);
  for (const int64_t n : {1, 7, 8, 63, 64, 65, 71, 72, 127, 128, 149}) {
    auto cut = count_from(0, n);
    const int64_t started = n % kPageTokens;
    EXPECT_EQ(hit("a", cut), started < 8 ? n - started : n) << n;
    cut.push_back(-1);
    EXPECT_EQ(hit("a", cut), started < 8 ? n - started : n) << n;
  }
  EXPECT_EQ(hit("a", count_from(1, 150)), 0);
}

TEST_F(PrefixCacheTest, RootsNeverMeet) {
  keep("a", count_from(0, 100));
  EXPECT_EQ(hit("b", count_from(0, 100)), 0);
  EXPECT_EQ(hit("", count_from(0, 100)), 0);
  keep("b", count_from(0, 100));
  EXPECT_EQ(pool_.cached_pages(), 4);
}

TEST_F(PrefixCacheTest, ContinuedTextReplacesTheStartedPage) {
  keep("a", count_from(0, 100));
  keep("a", count_from(0, 140));
  EXPECT_EQ(pool_.cached_pages(), 3);
  keep("a", count_from(0, 140));
  EXPECT_EQ(pool_.cached_pages(), 3);
  EXPECT_EQ(hit("a", count_from(0, 140)), 140);
}

TEST_F(PrefixCacheTest, TooShortToKeep) {
  keep("a", count_from(0, 7));
  EXPECT_EQ(prefixes_.kept_pages(), 0);
  keep("a", count_from(0, 8));
  EXPECT_EQ(prefixes_.kept_pages(), 1);
}

TEST_F(PrefixCacheTest, GivesUpTheLeastRecentlyUsedAndNoPageInUse) {
  keep("a", count_from(0, 128));
  keep("a", count_from(1000, 128));
  keep("b", count_from(0, 64));
  EXPECT_EQ(hit("a", count_from(0, 128)), 128);  // now the youngest
  prefixes_.match("b", count_from(0, 64), 64, user_);
  prefixes_.make_room(5);
  audit({});
  EXPECT_EQ(pool_.free_pages(), 5);
  EXPECT_EQ(hit("a", count_from(1000, 128)), 0);
  EXPECT_EQ(hit("a", count_from(0, 128)), 128);
  prefixes_.make_room(8);
  audit({});
  EXPECT_EQ(pool_.free_pages(), 7);
  EXPECT_EQ(prefixes_.kept_pages(), 1);
  pool_.release(user_);
  prefixes_.make_room(8);
  EXPECT_EQ(pool_.free_pages(), 8);
}

// The end of a text goes before its beginning, so that nothing unreachable stays.
TEST_F(PrefixCacheTest, LeavesGoBeforeWhatTheyHangFrom) {
  keep("a", count_from(0, 8 * kPageTokens));
  for (int64_t left = 7; left > 0; --left) {
    prefixes_.make_room(8 - left);
    audit({});
    EXPECT_EQ(hit("a", count_from(0, 8 * kPageTokens)), left * kPageTokens);
  }
}

TEST_F(PrefixCacheTest, AFullPoolStillShares) {
  keep("a", count_from(0, 8 * kPageTokens));
  // No page is free for a copy of the started page, and none may be taken from the match itself.
  std::vector<int32_t> text = count_from(0, 8 * kPageTokens - 1);
  EXPECT_EQ(hit("a", text), 7 * kPageTokens);
  audit({});
}

TEST_F(PrefixCacheTest, AuditSeesWrongBooks) {
  CachedSequence s;
  ASSERT_TRUE(pool_.reserve(s, 70));
  EXPECT_NE(pool_.audit({}, {}), "");
  const CachedSequence* held[] = {&s};
  EXPECT_EQ(pool_.audit(held, {}), "");
  const CachedSequence* twice[] = {&s, &s};
  EXPECT_NE(pool_.audit(twice, {}), "");
  EXPECT_NE(pool_.audit(held, std::vector<int32_t>{s.pages[0]}), "");
  s.length = 200;
  EXPECT_NE(pool_.audit(held, {}), "");
  s.length = 0;
  pool_.release(s);
}

}  // namespace
}  // namespace tamis
