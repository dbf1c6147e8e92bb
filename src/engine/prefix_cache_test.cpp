#include "engine/prefix_cache.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <random>

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

// SE-10. Every page and every root has the same hash, as after a perfect attack on it: what is
// found is still only what was kept of the same text under the same root, with its own pages.
TEST(PrefixCollision, TokensParentAndRootAreCompared) {
  const ModelConfig config = tiny_config();
  PagedCache pool(config, {64}, nullptr);
  PrefixCache prefixes(pool, /*hash_mask=*/0);
  std::map<std::pair<std::string, std::vector<int32_t>>, std::vector<int32_t>> kept;
  std::mt19937 rng(7);
  const auto text_of = [](unsigned number, int64_t pages) {
    // Few different pages, so that many texts have the same ones in other places.
    std::vector<int32_t> text;
    for (int64_t p = 0; p < pages; ++p, number /= 4) {
      const auto page = count_from(static_cast<int32_t>(number % 4) * 1000, kPageTokens);
      text.insert(text.end(), page.begin(), page.end());
    }
    return text;
  };
  for (int i = 0; i < 12; ++i) {
    const std::string root = i % 2 == 0 ? "a" : "b";
    const auto text = text_of(rng() % 16 * 4 + rng() % 3, 3);  // no first page of the fourth
    CachedSequence s, found;
    ASSERT_TRUE(pool.reserve(s, 3 * kPageTokens));
    s.length = 3 * kPageTokens;
    prefixes.insert(root, text, s, true);
    pool.release(s);
    ASSERT_EQ(prefixes.match(root, text, 3 * kPageTokens, found), 3 * kPageTokens);
    kept[{root, text}] = found.pages;
    pool.release(found);
  }
  int hits = 0;
  for (unsigned number = 0; number < 64; ++number) {
    for (const char* root : {"a", "b", "c"}) {
      const auto text = text_of(number, 3);
      int64_t expected = 0;
      std::vector<int32_t> pages;
      for (const auto& [key, own] : kept) {
        if (key.first != root) continue;
        const auto same = std::mismatch(text.begin(), text.end(), key.second.begin()).first;
        const int64_t full = (same - text.begin()) / kPageTokens;
        if (full <= expected) continue;
        expected = full;
        pages.assign(own.begin(), own.begin() + full);
      }
      CachedSequence found;
      EXPECT_EQ(prefixes.match(root, text, 3 * kPageTokens, found), expected * kPageTokens);
      EXPECT_EQ(found.pages, pages) << root << ' ' << number;
      hits += expected > 0 ? 1 : 0;
      pool.release(found);
    }
  }
  EXPECT_GT(hits, 10);
  EXPECT_LT(hits, 2 * 64);
  prefixes.make_room(64);
  EXPECT_EQ(pool.free_pages(), 64);
  EXPECT_EQ(pool.audit({}, prefixes.kept()), "");
}

class PrefixFileTest : public PrefixCacheTest {
 protected:
  PrefixFileTest() : file_{::testing::TempDir() + "prefixes", 77} {
    pool_.write_page(0, std::vector<std::byte>(static_cast<size_t>(pool_.page_bytes())));
    keep("a", count_from(0, 150));
    keep("a", count_from(1000, 70));
    keep("b", count_from(0, 64));
  }
  ~PrefixFileTest() override { std::remove(file_.path.c_str()); }

  struct Restarted {
    explicit Restarted(const ModelConfig& config, int64_t pages = 8)
        : pool(config, {pages}, nullptr), prefixes(pool) {}
    int64_t hit(const std::string& root, const std::vector<int32_t>& tokens) {
      CachedSequence s;
      const int64_t n = prefixes.match(root, tokens, static_cast<int64_t>(tokens.size()), s);
      pool.release(s);
      EXPECT_EQ(pool.audit({}, prefixes.kept()), "");
      return n;
    }
    PagedCache pool;
    PrefixCache prefixes;
  };
  std::string bytes() const {
    std::ifstream in(file_.path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void write(const std::string& bytes) const {
    std::ofstream(file_.path, std::ios::binary) << bytes;
  }

  PrefixFile file_;
};

TEST_F(PrefixFileTest, ComesBackAfterARestart) {
  std::vector<std::byte> page(static_cast<size_t>(pool_.page_bytes()));
  for (const int32_t p : prefixes_.kept()) {
    for (size_t i = 0; i < page.size(); ++i) {
      page[i] = static_cast<std::byte>(static_cast<size_t>(p) * 31 + i);
    }
    pool_.write_page(p, page);
  }
  const int64_t saved = prefixes_.save(file_);
  EXPECT_EQ(saved, prefixes_.kept_pages());
  EXPECT_EQ(std::filesystem::status(file_.path).permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  Restarted next(config_);
  const PrefixLoad loaded = next.prefixes.load(file_);
  EXPECT_EQ(loaded.trouble, "");
  EXPECT_EQ(loaded.pages, saved);
  EXPECT_EQ(next.hit("a", count_from(0, 150)), 150);
  EXPECT_EQ(next.hit("a", count_from(1000, 70)), hit("a", count_from(1000, 70)));
  EXPECT_EQ(next.hit("b", count_from(0, 64)), 64);
  EXPECT_EQ(next.hit("c", count_from(0, 64)), 0);
  // The bytes of a page are those of the same text.
  CachedSequence was, is;
  prefixes_.match("a", count_from(0, 128), 128, was);
  next.prefixes.match("a", count_from(0, 128), 128, is);
  for (size_t i = 0; i < 2; ++i) {
    std::vector<std::byte> other(page.size());
    pool_.read_page(was.pages[i], page);
    next.pool.read_page(is.pages[i], other);
    EXPECT_EQ(page, other);
  }
  pool_.release(was);
  next.pool.release(is);
  // A smaller pool takes what it can hold.
  Restarted small(config_, 2);
  EXPECT_EQ(small.prefixes.load(file_).pages, 2);
  EXPECT_EQ(small.pool.audit({}, small.prefixes.kept()), "");
}

TEST_F(PrefixFileTest, ASmallerFileHoldsTheMostRecentlyUsed) {
  hit("b", count_from(0, 64));
  file_.max_bytes = 2 * (pool_.page_bytes() + 400);
  EXPECT_EQ(prefixes_.save(file_), 2);
  Restarted next(config_);
  EXPECT_EQ(next.prefixes.load(file_).pages, 2);
  EXPECT_EQ(next.hit("b", count_from(0, 64)), 64);
}

// Cut anywhere, or with any byte changed: what is taken is right, the rest is left out.
TEST_F(PrefixFileTest, DamageIsLeftOut) {
  const int64_t saved = prefixes_.save(file_);
  const std::string good = bytes();
  EXPECT_EQ(Restarted(config_).prefixes.load({file_.path, 78}).pages, 0);
  EXPECT_EQ(Restarted(config_).prefixes.load({file_.path + ".none", 77}).trouble, "");
  const auto check = [&](const std::string& bad, size_t at) {
    write(bad);
    Restarted next(config_);
    const PrefixLoad loaded = next.prefixes.load(file_);
    EXPECT_LT(loaded.pages, saved) << at;
    EXPECT_FALSE(loaded.trouble.empty() && at >= 32) << at;
    EXPECT_EQ(next.pool.audit({}, next.prefixes.kept()), "") << at;
  };
  for (size_t cut = 1; cut < good.size(); cut += 97) {
    // At the end of a record nothing shows that more was there.
    if (const std::string left = good.substr(0, cut); left.size() > 40) check(left, cut);
  }
  for (size_t at = 0; at < good.size(); at += 61) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    check(bad, at);
  }
  write("");
  EXPECT_FALSE(Restarted(config_).prefixes.load(file_).trouble.empty());
}

// Killed while it writes, at any moment: the next start finds a whole file, the old one or the new.
TEST_F(PrefixFileTest, AKillLeavesTheOldFileOrTheNew) {
  const int64_t before = prefixes_.save(file_);
  const std::string old = bytes();
  keep("z", count_from(5000, 64));
  std::mt19937 rng(11);
  int of_new = 0;
  constexpr int kTrials = 60;
  for (int trial = 0; trial < kTrials; ++trial) {
    write(old);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      while (true) prefixes_.save(file_);
    }
    ::usleep(rng() % 6000);
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    Restarted next(config_);
    const PrefixLoad loaded = next.prefixes.load(file_);
    EXPECT_EQ(loaded.trouble, "");
    EXPECT_EQ(next.hit("a", count_from(0, 150)), 150);
    const bool is_new = next.hit("z", count_from(5000, 64)) == 64;
    EXPECT_EQ(loaded.pages, is_new ? before + 1 : before);
    of_new += is_new ? 1 : 0;
  }
  // Some died before the first file was whole, some after.
  EXPECT_LT(of_new, kTrials);
  EXPECT_GE(prefixes_.save(file_), before + 1);  // what a kill has left is in nobody's way
}

}  // namespace
}  // namespace tamis
