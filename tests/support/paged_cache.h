// A paged cache of a few sequences for tests: pages in shuffled order, every byte that was not
// written a NaN in every format, and helpers that name the tokens of a call.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/kv_layout.h"

namespace tamis {

inline std::vector<float> random_floats(int64_t n, uint32_t seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(random);
  return x;
}

class PagedCache {
 public:
  // lengths[i]: tokens of sequence i. `content` seeds the values, `order` the order of the pages.
  PagedCache(const KvLayout& layout, const std::vector<int64_t>& lengths, uint32_t content,
             uint32_t order)
      : lengths_(lengths) {
    int64_t count = 0;
    for (const int64_t n : lengths) count += pages_of(n);
    std::vector<int32_t> ids(static_cast<size_t>(count));
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(order));
    bytes_.assign(static_cast<size_t>(count * layout.page_bytes()), std::byte{0xFF});
    layer_ = {layout, bytes_.data(), layout.page_bytes()};
    for (const int64_t n : lengths) {
      pages_.emplace_back(ids.end() - pages_of(n), ids.end());
      ids.resize(ids.size() - static_cast<size_t>(pages_of(n)));
    }
    for (const auto& p : pages_) sequences_.push_back({p.data()});
    fill(content);
  }

  const KvLayer& layer() const { return layer_; }
  const KvSequence* sequences() const { return sequences_.data(); }
  const std::vector<std::byte>& bytes() const { return bytes_; }
  const std::vector<std::vector<int32_t>>& pages() const { return pages_; }
  int64_t length(int64_t i) const { return lengths_[static_cast<size_t>(i)]; }

  // Makes the latent row of a token NaN.
  void poison_latent(int64_t sequence, int64_t position) {
    std::memset(latent_row(layer_, sequences_[static_cast<size_t>(sequence)], position), 0xFF,
                static_cast<size_t>(layer_.layout.latent_row_bytes()));
  }

 private:
  static int64_t pages_of(int64_t n) { return (n + kPageTokens - 1) / kPageTokens; }

  void fill(uint32_t seed) {
    const KvLayout& l = layer_.layout;
    for (size_t i = 0; i < sequences_.size(); ++i) {
      for (int64_t s = 0; s < lengths_[i]; ++s) {
        const auto x = random_floats(l.kv_lora + l.rope + l.index_dim, seed++);
        write_latent(layer_, sequences_[i], s, x.data(), x.data() + l.kv_lora);
        if (l.index_dim > 0) {
          write_index_key(layer_, sequences_[i], s, x.data() + l.kv_lora + l.rope, false);
        }
      }
    }
  }

  std::vector<int64_t> lengths_;
  std::vector<std::byte> bytes_;
  std::vector<std::vector<int32_t>> pages_;
  std::vector<KvSequence> sequences_;
  KvLayer layer_;
};

// The tokens of a call, as lists.
struct TokenList {
  std::vector<int32_t> sequence, position;

  void add(int64_t s, int64_t p) {
    sequence.push_back(static_cast<int32_t>(s));
    position.push_back(static_cast<int32_t>(p));
  }
  int64_t size() const { return static_cast<int64_t>(position.size()); }
  // Tokens [begin, end) of the list.
  TokenMap map(const PagedCache& cache, int64_t begin, int64_t end) const {
    int64_t longest = 0;
    for (const int32_t p : position) longest = std::max<int64_t>(longest, p + 1);
    return {end - begin, sequence.data() + begin, position.data() + begin, cache.sequences(),
            longest};
  }
};

}  // namespace tamis
