// One call of mla_dense for its tests. Test code only.
#pragma once

#include <cmath>
#include <string>

#include "kernels/mla_dense/mla_dense.h"
#include "kernels/tolerance.h"
#include "support/paged_cache.h"
#include "tensor/convert.h"

namespace tamis::mla_dense_test {

struct Shape {
  int64_t heads, nope, rope, v_dim;
};

// Queries at the last `tokens` of `positions` positions.
class Problem {
 public:
  Problem(const Shape& shape, int64_t tokens, int64_t positions)
      : shape_(shape), positions_(positions) {
    q_ = random_floats(tokens * shape.heads * (shape.nope + shape.rope), 1);
    kv_ = random_floats(positions * shape.heads * (shape.nope + shape.v_dim), 2);
    k_pe_ = random_floats(positions * shape.rope, 3);
    for (int64_t t = 0; t < tokens; ++t) {
      position_.push_back(static_cast<int32_t>(positions - tokens + t));
    }
  }

  // Tokens [begin, end), all pointers to host memory; `out` is the caller's.
  MlaDenseArgs args(int64_t begin, int64_t end) const {
    MlaDenseArgs a;
    a.q = q_.data() + begin * shape_.heads * (shape_.nope + shape_.rope);
    a.tokens = end - begin;
    a.heads = shape_.heads;
    a.nope = shape_.nope;
    a.rope = shape_.rope;
    a.v_dim = shape_.v_dim;
    a.position = position_.data() + begin;
    a.kv = kv_.data();
    a.k_pe = k_pe_.data();
    a.positions = positions_;
    a.indices = indices_.empty() ? nullptr : indices_.data() + begin * k_;
    a.k = k_;
    a.softmax_scale = scale();
    return a;
  }

  std::vector<float> run(const std::string& name, int64_t begin, int64_t end, int threads) const {
    std::vector<float> out(static_cast<size_t>((end - begin) * row()), NAN);
    KernelContext context(threads);
    context.force("mla_dense", name);
    MlaDenseArgs a = args(begin, end);
    a.round_bf16 = round_bf16;
    a.out = out.data();
    mla_dense(context, a);
    return out;
  }

  std::vector<float> all(const std::string& name, int threads = 2) const {
    return run(name, 0, tokens(), threads);
  }

  // As for mla_sparse: the error of a score, of exp and of its argument move a weight by
  // that factor, numerator and denominator alike; then a sum over the positions.
  double tolerance() const {
    const int64_t dim = shape_.nope + shape_.rope;
    double q = 0, k = 0, pe = 0;
    const double v = largest_value();
    for (int64_t r = 0; r < tokens() * shape_.heads; ++r) {
      q = std::max(q, norm2(q_.data() + r * dim, dim));
    }
    for (int64_t r = 0; r < positions_ * shape_.heads; ++r) {
      const float* row = kv_.data() + r * (shape_.nope + shape_.v_dim);
      k = std::max(k, norm2(row, shape_.nope));
    }
    for (int64_t s = 0; s < positions_; ++s) {
      pe = std::max(pe, norm2(k_pe_.data() + s * shape_.rope, shape_.rope));
    }
    const double key = std::hypot(k, pe), score = scale() * q * key;
    const double score_error = scale() * dot_tolerance(dim, q, key);
    const double exp_error = (4 + 2 * score) * kUnitF32;
    const auto n = static_cast<double>(positions_);
    return v * (2 * (score_error + exp_error) + (n + n / 16 + 40) * kUnitF32);
  }

  double largest_value() const {
    double v = 0;
    const int64_t width = shape_.nope + shape_.v_dim;
    for (size_t i = 0; i < kv_.size(); ++i) {
      if (static_cast<int64_t>(i) % width >= shape_.nope)
        v = std::max<double>(v, std::fabs(kv_[i]));
    }
    return v;
  }

  bool round_bf16 = false;  // what run() asks for

  // As the native path has them.
  void round_inputs() {
    round_bf16 = true;
    for (auto* values : {&q_, &kv_, &k_pe_}) {
      for (float& x : *values) x = round_to_bf16(x);
    }
  }

  // k random positions that each query sees, or all if it sees fewer.
  void select(int64_t k) {
    std::mt19937 random(5);
    k_ = k;
    indices_.assign(static_cast<size_t>(tokens() * k), -1);
    for (int64_t t = 0; t < tokens(); ++t) {
      std::vector<int32_t> seen(static_cast<size_t>(position_[static_cast<size_t>(t)] + 1));
      std::iota(seen.begin(), seen.end(), 0);
      std::sample(seen.begin(), seen.end(), indices_.begin() + t * k, k, random);
    }
  }

  void poison_position(int64_t s) {
    const int64_t width = shape_.heads * (shape_.nope + shape_.v_dim);
    std::fill_n(kv_.begin() + s * width, width, NAN);
  }

  int64_t positions() const { return positions_; }
  int64_t tokens() const { return static_cast<int64_t>(position_.size()); }
  int64_t row() const { return shape_.heads * shape_.v_dim; }

 private:
  float scale() const { return 1 / std::sqrt(static_cast<float>(shape_.nope + shape_.rope)); }

  Shape shape_;
  int64_t positions_;
  std::vector<float> q_, kv_, k_pe_;
  std::vector<int32_t> position_, indices_;
  int64_t k_ = 0;
};

}  // namespace tamis::mla_dense_test
