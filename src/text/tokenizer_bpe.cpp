#include "text/tokenizer_bpe.h"

#include <algorithm>
#include <cstddef>
#include <functional>

namespace tamis {
namespace {

// Up to here a scan for the lowest rank beats the heap.
constexpr size_t kShortWord = 48;

}  // namespace

BytePairEncoder::BytePairEncoder(const std::array<int32_t, 256>& byte_ids,
                                 std::vector<Merge> merges, int64_t id_count)
    : byte_ids_(byte_ids), merges_(std::move(merges)) {
  first_pair_.assign(static_cast<size_t>(id_count) + 1, 0);
  for (const Merge& m : merges_) ++first_pair_[static_cast<size_t>(m.left) + 1];
  for (size_t i = 1; i < first_pair_.size(); ++i) first_pair_[i] += first_pair_[i - 1];
  pairs_.resize(merges_.size());
  std::vector<uint32_t> fill(first_pair_.begin(), first_pair_.end() - 1);
  for (size_t rank = 0; rank < merges_.size(); ++rank) {
    const auto left = static_cast<size_t>(merges_[rank].left);
    pairs_[fill[left]++] = {merges_[rank].right, static_cast<uint32_t>(rank)};
  }
  for (size_t left = 0; left + 1 < first_pair_.size(); ++left) {
    std::sort(pairs_.begin() + first_pair_[left], pairs_.begin() + first_pair_[left + 1],
              [](const Pair& a, const Pair& b) {
                return a.right != b.right ? a.right < b.right : a.rank > b.rank;
              });
  }
}

uint32_t BytePairEncoder::rank_of(int32_t left, int32_t right, bool avoid_added) const {
  const auto begin = pairs_.begin() + first_pair_[static_cast<size_t>(left)];
  const auto end = pairs_.begin() + first_pair_[static_cast<size_t>(left) + 1];
  const auto it = std::lower_bound(begin, end, right,
                                   [](const Pair& p, int32_t wanted) { return p.right < wanted; });
  if (it == end || it->right != right) return kNoRank;
  return avoid_added && merges_[it->rank].added ? kNoRank : it->rank;
}

void BytePairEncoder::encode(std::string_view word, bool avoid_added, Scratch& s,
                             std::vector<int32_t>& out) const {
  s.ids.clear();
  for (const char c : word) s.ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
  if (s.ids.size() > 1) {
    if (s.ids.size() <= kShortWord) {
      merge_short(avoid_added, s);
    } else {
      merge_long(avoid_added, s);
    }
  }
  out.insert(out.end(), s.ids.begin(), s.ids.end());
}

// ids shrinks in place; ranks[i] is the rank of (ids[i], ids[i+1]).
void BytePairEncoder::merge_short(bool avoid_added, Scratch& s) const {
  auto& ids = s.ids;
  auto& ranks = s.ranks;
  ranks.clear();
  for (size_t i = 0; i + 1 < ids.size(); ++i) {
    ranks.push_back(rank_of(ids[i], ids[i + 1], avoid_added));
  }
  while (!ranks.empty()) {
    s.steps += static_cast<int64_t>(ranks.size());
    const auto best = std::min_element(ranks.begin(), ranks.end());
    if (*best == kNoRank) break;
    const auto i = static_cast<size_t>(best - ranks.begin());
    ids[i] = merges_[*best].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    ranks.erase(best);
    if (i < ranks.size()) ranks[i] = rank_of(ids[i], ids[i + 1], avoid_added);
    if (i > 0) ranks[i - 1] = rank_of(ids[i - 1], ids[i], avoid_added);
  }
}

// Recomputes the rank of the pair that starts at pos and offers it to the heap.
void BytePairEncoder::refresh(int32_t pos, bool avoid_added, Scratch& s) const {
  const auto p = static_cast<size_t>(pos);
  const int32_t right = s.next[p];
  s.ranks[p] =
      right < 0 ? kNoRank : rank_of(s.ids[p], s.ids[static_cast<size_t>(right)], avoid_added);
  ++s.steps;
  if (s.ranks[p] == kNoRank) return;
  s.heap.push_back(uint64_t{s.ranks[p]} << 32 | static_cast<uint32_t>(pos));
}

void BytePairEncoder::merge_long(bool avoid_added, Scratch& s) const {
  const auto n = static_cast<int32_t>(s.ids.size());
  s.previous.resize(s.ids.size());
  s.next.resize(s.ids.size());
  s.ranks.assign(s.ids.size(), kNoRank);
  s.heap.clear();
  for (int32_t i = 0; i < n; ++i) {
    s.previous[static_cast<size_t>(i)] = i - 1;
    s.next[static_cast<size_t>(i)] = i + 1 < n ? i + 1 : -1;
  }
  for (int32_t i = 0; i < n; ++i) refresh(i, avoid_added, s);
  std::make_heap(s.heap.begin(), s.heap.end(), std::greater<>());
  const auto offer = [&](int32_t pos) {
    const size_t before = s.heap.size();
    refresh(pos, avoid_added, s);
    if (s.heap.size() != before) std::push_heap(s.heap.begin(), s.heap.end(), std::greater<>());
  };
  while (!s.heap.empty()) {
    std::pop_heap(s.heap.begin(), s.heap.end(), std::greater<>());
    const uint64_t top = s.heap.back();
    s.heap.pop_back();
    ++s.steps;
    const auto p = static_cast<size_t>(top & UINT32_MAX);
    const auto rank = static_cast<uint32_t>(top >> 32);
    if (s.ranks[p] != rank) continue;  // a neighbour was merged since: this pair is gone
    const auto gone = static_cast<size_t>(s.next[p]);
    s.ids[p] = merges_[rank].result;
    s.ids[gone] = -1;
    s.ranks[gone] = kNoRank;
    s.next[p] = s.next[gone];
    if (s.next[p] >= 0) s.previous[static_cast<size_t>(s.next[p])] = static_cast<int32_t>(p);
    offer(static_cast<int32_t>(p));
    if (s.previous[p] >= 0) offer(s.previous[p]);
  }
  s.ids.erase(std::remove(s.ids.begin(), s.ids.end(), -1), s.ids.end());
}

}  // namespace tamis
