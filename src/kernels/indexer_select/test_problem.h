// One call of indexer_logits or indexer_select for their tests. Test code only.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "kernels/indexer_select/indexer_select.h"
#include "kernels/tolerance.h"
#include "support/paged_cache.h"
#include "tensor/convert.h"

namespace tamis::indexer_select_test {

struct Shape {
  int64_t heads, dim;
};

struct Scores {
  std::vector<float> logits;  // [tokens, stride]
  int64_t stride = 0;
  const float* row(int64_t t) const { return logits.data() + t * stride; }
};

struct Chosen {
  std::vector<int32_t> indices;
  std::vector<uint8_t> nan;
};

class Problem {
 public:
  Problem(const Shape& shape, KvFormat format, uint32_t page_order = 1)
      : shape_(shape),
        cache_({16, 4, shape.dim, KvFormat::kF32, format}, {1, 70, 700, 65, 1100}, 7, page_order) {
    for (int64_t s = 0; s < 5; ++s) {
      for (int64_t back = std::min<int64_t>(s == 2 ? 9 : 3, cache_.length(s)); back > 0; --back) {
        tokens_.add(s, cache_.length(s) - back);
      }
    }
    q_ = random_floats(tokens_.size() * shape.heads * shape.dim, 11);
    w_ = random_floats(tokens_.size() * shape.heads, 12);  // about half of them negative
  }

  Scores logits(const std::string& name, int64_t begin, int64_t end, int threads = 2) const {
    Scores s;
    s.stride = 1110;
    s.logits.assign(static_cast<size_t>((end - begin) * s.stride), 5.0f);
    KernelContext context(threads);
    context.force("indexer_logits", name);
    indexer_logits(context, {args(begin, end), s.logits.data(), s.stride});
    return s;
  }

  Chosen select(const std::string& name, int64_t k, int64_t begin, int64_t end,
                int threads = 2) const {
    Chosen c;
    c.indices.assign(static_cast<size_t>((end - begin) * k), -7);
    c.nan.assign(static_cast<size_t>(end - begin), 7);
    KernelContext context(threads);
    context.force("indexer_select", name);
    indexer_select(context, {args(begin, end), k, c.indices.data(), c.nan.data()});
    return c;
  }

  // How far a float32 score of token t may lie from the exact one: a product is off by
  // dot_tolerance, the sum over heads by the same bound on its own terms, which are at most |w| |q|
  // |k|.
  double tolerance(int64_t t) const {
    double products = 0, terms = 0;
    for (int64_t j = 0; j < shape_.heads; ++j) {
      const auto row = static_cast<size_t>(t * shape_.heads + j);
      const double q = norm2(q_.data() + static_cast<int64_t>(row) * shape_.dim, shape_.dim);
      products += std::fabs(w_[row]) * dot_tolerance(shape_.dim, q, key_norm_);
      terms += std::fabs(w_[row]) * q * key_norm_;
    }
    return products + static_cast<double>(shape_.heads + 2) * kUnitF32 * terms * 1.001;
  }

  void measure_keys() {
    std::vector<float> key(static_cast<size_t>(shape_.dim));
    for (int64_t s = 0; s < 5; ++s) {
      for (int64_t p = 0; p < cache_.length(s); ++p) {
        read_index_key(cache_.layer(), cache_.sequences()[s], p, key.data());
        key_norm_ = std::max(key_norm_, norm2(key.data(), shape_.dim));
      }
    }
  }

  // Tokens [begin, end), all pointers to host memory.
  IndexerArgs args(int64_t begin, int64_t end) const {
    return {q_.data() + begin * shape_.heads * shape_.dim, w_.data() + begin * shape_.heads,
            shape_.heads, cache_.layer(), tokens_.map(cache_, begin, end)};
  }

  int64_t tokens() const { return tokens_.size(); }
  int64_t visible(int64_t t) const { return tokens_.position[static_cast<size_t>(t)] + 1; }
  float* q(int64_t t) { return q_.data() + t * shape_.heads * shape_.dim; }
  float* w(int64_t t) { return w_.data() + t * shape_.heads; }
  // Queries as the FP8 indexer has them.
  void round_queries() {
    for (float& v : q_) v = e4m3_to_float(float_to_e4m3(v));
  }
  const PagedCache& cache() const { return cache_; }

 private:
  Shape shape_;
  PagedCache cache_;
  TokenList tokens_;
  std::vector<float> q_, w_;
  double key_norm_ = 0;
};

}  // namespace tamis::indexer_select_test
