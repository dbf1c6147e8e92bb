#include "text/tokenizer_bpe.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstddef>
#include <string>

namespace tamis {
namespace {

using Merge = BytePairEncoder::Merge;
using Ids = std::vector<int32_t>;

std::array<int32_t, 256> identity() {
  std::array<int32_t, 256> ids;
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  return ids;
}

// The definition: the adjacent pair of lowest rank, the leftmost of those, until there is none.
Ids encode_by_definition(const std::vector<Merge>& merges, const std::string& word, bool avoid) {
  Ids ids;
  for (const char c : word) ids.push_back(static_cast<unsigned char>(c));
  for (;;) {
    size_t best_rank = merges.size(), best = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        const Merge& m = merges[rank];
        if (m.left != ids[i] || m.right != ids[i + 1] || (avoid && m.added)) continue;
        best_rank = rank;
        best = i;
      }
    }
    if (best_rank == merges.size()) return ids;
    ids[best] = merges[best_rank].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

Ids encode(const BytePairEncoder& bpe, const std::string& word, bool avoid = false) {
  BytePairEncoder::Scratch scratch;
  Ids ids;
  bpe.encode(word, avoid, scratch, ids);
  return ids;
}

// Random merges over the letters a, b, c and what they make; each pair once.
std::vector<Merge> random_merges() {
  std::vector<Merge> merges;
  std::vector<int32_t> known = {'a', 'b', 'c'};
  const int count = *rc::gen::inRange(0, 24);
  for (int i = 0; i < count; ++i) {
    const int32_t left = *rc::gen::elementOf(known), right = *rc::gen::elementOf(known);
    bool twice = false;
    for (const Merge& m : merges) twice |= m.left == left && m.right == right;
    if (twice) continue;
    const int32_t result = 256 + static_cast<int32_t>(merges.size());
    merges.push_back({left, right, result, *rc::gen::inRange(0, 4) == 0});
    known.push_back(result);
  }
  return merges;
}

RC_GTEST_PROP(BytePairEncoder, EqualsItsDefinition, ()) {
  const std::vector<Merge> merges = random_merges();
  const BytePairEncoder bpe(identity(), merges, 512);
  // Lengths around the change from scanning to the heap.
  const size_t size = *rc::gen::elementOf(std::vector<size_t>{0, 1, 2, 5, 20, 47, 48, 49, 50, 90});
  const auto word = *rc::gen::container<std::string>(size, rc::gen::elementOf(std::string("abc")));
  for (const bool avoid : {false, true}) {
    RC_ASSERT(encode(bpe, word, avoid) == encode_by_definition(merges, word, avoid));
  }
}

TEST(BytePairEncoder, LeftmostOfEqualRanks) {
  const BytePairEncoder bpe(identity(), {{'a', 'a', 256, false}}, 257);
  EXPECT_EQ(encode(bpe, ""), Ids{});
  EXPECT_EQ(encode(bpe, "a"), Ids{'a'});
  EXPECT_EQ(encode(bpe, "aaa"), (Ids{256, 'a'}));
  const Ids long_run = encode(bpe, std::string(101, 'a'));
  ASSERT_EQ(long_run.size(), 51u);
  EXPECT_EQ(long_run.front(), 256);
  EXPECT_EQ(long_run.back(), 'a');
}

TEST(BytePairEncoder, OfAPairGivenTwiceTheLaterCounts) {
  const BytePairEncoder bpe(
      identity(), {{'a', 'b', 256, false}, {'b', 'c', 257, false}, {'a', 'b', 256, false}}, 258);
  EXPECT_EQ(encode(bpe, "abc"), (Ids{'a', 257}));
}

// Counted, not timed: heap operations on runs that merge all the way up, and on ones that do not.
TEST(BytePairEncoder, WorkIsLinear) {
  std::vector<Merge> doubling = {{'a', 'a', 256, false}};
  for (int32_t i = 256; i < 276; ++i) doubling.push_back({i, i, i + 1, false});
  const BytePairEncoder bpe(identity(), doubling, 300);
  for (const std::string unit : {"a", "ab", "aab", "z"}) {
    const auto steps = [&](size_t size) {
      BytePairEncoder::Scratch scratch;
      Ids ids;
      std::string word;
      while (word.size() < size) word += unit;
      bpe.encode(word, false, scratch, ids);
      return static_cast<double>(scratch.steps);
    };
    EXPECT_LE(steps(1 << 20) / steps(1 << 19), 2.2) << unit;
    EXPECT_LE(steps(1 << 20), 8.0 * (1 << 20)) << unit;
  }
}

}  // namespace
}  // namespace tamis
