// One call of mla_sparse for its tests: ragged sequences, selections, and how far a result may lie
// from the exact one. Test code only.
#pragma once

#include <cmath>
#include <set>
#include <string>

#include "kernels/mla_sparse/mla_sparse.h"
#include "kernels/mla_sparse/mla_sparse_int16.h"
#include "support/paged_cache.h"
#include "tensor/convert.h"

namespace tamis::mla_sparse_test {

struct Shape {
  int64_t heads, kv_lora, rope, k;
};

// One call's inputs: ragged sequences, a selection for each token.
class Problem {
 public:
  // The last `each` tokens of every sequence.
  Problem(const Shape& shape, KvFormat format, uint32_t page_order = 1, int32_t longest = 700,
          int64_t each = 5)
      : shape_(shape),
        longest_(longest),
        cache_({shape.kv_lora, shape.rope, 0, format, format}, {1, 70, longest, 65}, 7,
               page_order) {
    for (int64_t s = 0; s < 4; ++s) {
      for (int64_t back = std::min<int64_t>(each, cache_.length(s)); back > 0; --back) {
        tokens_.add(s, cache_.length(s) - back);
      }
    }
    q_ = random_floats(tokens_.size() * shape.heads * shape.kv_lora, 11);
    q_pe_ = random_floats(tokens_.size() * shape.heads * (shape.rope + 3), 12);
    select();
  }

  // Every row that no token selected becomes NaN: reading one would show.
  void poison_unselected() {
    std::set<std::pair<int32_t, int32_t>> used;
    for (size_t t = 0; t < tokens_.position.size(); ++t) {
      for (size_t i = 0; i < static_cast<size_t>(shape_.k); ++i) {
        used.insert({tokens_.sequence[t], indices_[t * static_cast<size_t>(shape_.k) + i]});
      }
    }
    for (int32_t s = 0; s < 4; ++s) {
      for (int32_t p = 0; p < cache_.length(s); ++p) {
        if (used.count({s, p}) == 0) cache_.poison_latent(s, p);
      }
    }
  }

  // Tokens [begin, end), all pointers to host memory; `out` is the caller's.
  MlaSparseArgs args(int64_t begin, int64_t end, bool all_visible = false) const {
    const int64_t head = shape_.rope + 3;
    MlaSparseArgs a;
    a.q_latent = q_.data() + begin * shape_.heads * shape_.kv_lora;
    a.q_pe = q_pe_.data() + begin * shape_.heads * head;
    a.q_pe_token_stride = shape_.heads * head;
    a.q_pe_head_stride = head;
    a.heads = shape_.heads;
    a.kv = cache_.layer();
    a.tokens = tokens_.map(cache_, begin, end);
    a.indices = all_visible ? nullptr : indices_.data() + begin * shape_.k;
    a.k = shape_.k;
    a.softmax_scale = scale();
    return a;
  }

  // Tokens [begin, end) with implementation `name` on `threads` threads.
  std::vector<float> run(const std::string& name, int64_t begin, int64_t end, int threads,
                         bool all_visible = false) const {
    std::vector<float> out(static_cast<size_t>((end - begin) * row()), NAN);
    MlaSparseArgs a = args(begin, end, all_visible);
    a.round_bf16 = round_bf16;
    a.int16 = int16;
    a.out = out.data();
    KernelContext context(threads);
    context.force("mla_sparse", name);
    mla_sparse(context, a);
    return out;
  }

  std::vector<float> all(const std::string& name, int threads = 2) const {
    return run(name, 0, tokens_.size(), threads);
  }

  // How far a float32 result may lie from the exact one. u is the unit roundoff. A score is a
  // product of `dim` terms in 16 lanes, of rows whose norms bound it; an error of the score moves
  // every weight by that factor, numerator and denominator alike; weights and values are summed
  // over n entries.
  double tolerance() const {
    const double u = std::ldexp(1.0, -24);
    const auto dim = static_cast<double>(shape_.kv_lora + shape_.rope);
    double q = 0, k = 0;
    const double v = largest_value();
    for (int64_t r = 0; r < tokens_.size() * shape_.heads; ++r) {
      q = std::max(q, norm(q_.data() + r * shape_.kv_lora, shape_.kv_lora) +
                          norm(q_pe_.data() + r * (shape_.rope + 3), shape_.rope));
    }
    std::vector<float> row(static_cast<size_t>(dim));
    for (int64_t s = 0; s < 4; ++s) {
      for (int64_t p = 0; p < cache_.length(s); ++p) {
        read_latent(cache_.layer(), cache_.sequences()[s], p, row.data());
        if (std::isnan(row[0])) continue;
        k = std::max(k, norm(row.data(), shape_.kv_lora + shape_.rope));
      }
    }
    const double score = scale() * q * k, score_error = (dim / 16 + 6) * u * score;
    const double exp_error = 4 * u + 2 * u * score;  // of exp itself, and of its argument
    const auto n = static_cast<double>(std::min<int64_t>(shape_.k, longest_));
    return v * (2 * (score_error + exp_error) + (n + n / 16 + 40) * u);
  }

  // How far a result with integers may lie from their reference: an error of float may move a
  // weight's integer by one, s_w. With p_max the group's largest weight and s_k any entry's scale,
  // s_w |n_k| <= p_max max(s_k) / kWeightLimit * kLatentLimit = p_max v / kWeightLimit, and the sum
  // of all p, which divides, is at least p_max.
  double int16_tolerance() const {
    const auto n = static_cast<double>(std::min<int64_t>(shape_.k, longest_));
    return tolerance() + n * largest_value() / kWeightLimit;
  }

  // Of the latents in the cache.
  double largest_value() const {
    double v = 0;
    std::vector<float> row(static_cast<size_t>(shape_.kv_lora + shape_.rope));
    for (int64_t s = 0; s < 4; ++s) {
      for (int64_t p = 0; p < cache_.length(s); ++p) {
        read_latent(cache_.layer(), cache_.sequences()[s], p, row.data());
        if (std::isnan(row[0])) continue;
        for (int64_t i = 0; i < shape_.kv_lora; ++i) {
          v = std::max<double>(v, std::fabs(row[static_cast<size_t>(i)]));
        }
      }
    }
    return v;
  }

  void swap_first_two_of(int64_t t) {
    std::swap(indices_[static_cast<size_t>(t * shape_.k)],
              indices_[static_cast<size_t>(t * shape_.k + 1)]);
  }
  void poison(int64_t sequence, int64_t position) { cache_.poison_latent(sequence, position); }
  bool round_bf16 = false, int16 = false;  // what run() asks for

  // Queries as the native path has them.
  void round_queries() {
    for (std::vector<float>* x : {&q_, &q_pe_}) {
      for (float& v : *x) v = round_to_bf16(v);
    }
  }
  const PagedCache& cache() const { return cache_; }
  float* q() { return q_.data(); }
  int64_t tokens() const { return tokens_.size(); }
  int64_t row() const { return shape_.heads * shape_.kv_lora; }

 private:
  float scale() const { return 1 / std::sqrt(static_cast<float>(shape_.kv_lora + shape_.rope)); }

  static double norm(const float* x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
    return std::sqrt(sum);
  }

  void select() {
    std::mt19937 random(5);
    indices_.assign(static_cast<size_t>(tokens_.size() * shape_.k), -1);
    for (int64_t t = 0; t < tokens_.size(); ++t) {
      std::vector<int32_t> all(static_cast<size_t>(tokens_.position[static_cast<size_t>(t)] + 1));
      std::iota(all.begin(), all.end(), 0);
      std::sample(all.begin(), all.end(), indices_.begin() + t * shape_.k, shape_.k, random);
    }
  }

  Shape shape_;
  int64_t longest_;
  PagedCache cache_;
  TokenList tokens_;
  std::vector<float> q_, q_pe_;
  std::vector<int32_t> indices_;
};

}  // namespace tamis::mla_sparse_test
