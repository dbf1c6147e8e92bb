// The reference of mla_sparse with products of integers: mla_sparse_int16.h, loop by loop. What is
// not an integer there is double here.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/mla_sparse/mla_sparse_impl.h"
#include "kernels/mla_sparse/mla_sparse_int16.h"

namespace tamis {

float quantize_int16(const float* x, int64_t n, int limit, int16_t* out) {
  float most = 0;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    finite = finite && std::isfinite(x[i]);
    most = std::max(most, std::fabs(x[i]));
  }
  std::fill_n(out, n, int16_t{0});
  if (!finite) return std::numeric_limits<float>::quiet_NaN();
  if (most < kSmallestInt16Row) return 0;
  const float inverse = static_cast<float>(limit) / most;
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<int16_t>(std::nearbyint(x[i] * inverse));
  return most / static_cast<float>(limit);
}

namespace {

// Rows of latents and RoPE parts as integers.
struct IntRows {
  IntRows(int64_t count, int64_t c, int64_t pe)
      : latent(c),
        rope(pe),
        values(static_cast<size_t>(count * (c + pe))),
        latent_scale(static_cast<size_t>(count)),
        rope_scale(static_cast<size_t>(count)) {}

  const int16_t* row(int64_t i) const { return values.data() + i * (latent + rope); }

  void set(int64_t i, const float* c, const float* pe) {
    int16_t* out = values.data() + i * (latent + rope);
    latent_scale[static_cast<size_t>(i)] = quantize_int16(c, latent, int16_limit(latent), out);
    rope_scale[static_cast<size_t>(i)] = quantize_int16(pe, rope, int16_limit(rope), out + latent);
  }

  int64_t latent, rope;
  std::vector<int16_t> values;
  std::vector<float> latent_scale, rope_scale;
};

int32_t dot(const int16_t* a, const int16_t* b, int64_t n) {
  int32_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += int32_t{a[i]} * b[i];
  return sum;
}

double score(const IntRows& q, const IntRows& k, size_t i) {
  const int16_t *a = q.row(0), *b = k.row(static_cast<int64_t>(i));
  return static_cast<double>(q.latent_scale[0]) * k.latent_scale[i] * dot(a, b, q.latent) +
         static_cast<double>(q.rope_scale[0]) * k.rope_scale[i] *
             dot(a + q.latent, b + q.latent, q.rope);
}

// The online softmax of one row and its sums of values.
struct Sums {
  double max = -HUGE_VAL, sum = 0;
  std::vector<double> values;

  // A group: entries [begin, begin + scores.size()) of the list.
  void add_group(const std::vector<double>& scores, const IntRows& k, size_t begin) {
    double top = max;
    for (const double s : scores) top = std::max(top, s);
    const double alpha = std::exp(max - top);
    max = top;
    sum *= alpha;
    std::vector<float> w(scores.size());
    for (size_t i = 0; i < w.size(); ++i) {
      const double p = std::exp(scores[i] - top);
      sum += p;
      w[i] = static_cast<float>(p * k.latent_scale[begin + i]);
    }
    std::vector<int16_t> n(w.size());
    const float scale =
        quantize_int16(w.data(), static_cast<int64_t>(w.size()), kWeightLimit, n.data());
    for (size_t d = 0; d < values.size(); ++d) {
      int32_t total = 0;
      for (size_t i = 0; i < n.size(); ++i) {
        total += int32_t{n[i]} * k.row(static_cast<int64_t>(begin + i))[d];
      }
      values[d] = values[d] * alpha + static_cast<double>(scale) * total;
    }
  }
};

}  // namespace

void mla_sparse_int16_token(const MlaSparseArgs& a, int64_t t, const std::vector<int64_t>& set,
                            const std::vector<float>& rows) {
  const int64_t c = a.kv.layout.kv_lora, rope = a.kv.layout.rope;
  const auto count = static_cast<int64_t>(set.size());
  IntRows k(count, c, rope), q(1, c, rope);
  for (int64_t i = 0; i < count; ++i) {
    const float* row = rows.data() + i * (c + rope);
    k.set(i, row, row + c);
  }
  std::vector<float> scaled(static_cast<size_t>(c + rope));
  std::vector<double> scores(set.size());
  for (int64_t h = 0; h < a.heads; ++h) {
    const float* latent = a.q_latent + (t * a.heads + h) * c;
    const float* pe = a.q_pe + t * a.q_pe_token_stride + h * a.q_pe_head_stride;
    std::copy_n(latent, c, scaled.data());
    std::copy_n(pe, rope, scaled.data() + c);
    for (float& x : scaled) x *= a.softmax_scale;
    q.set(0, scaled.data(), scaled.data() + c);
    for (size_t i = 0; i < set.size(); ++i) scores[i] = score(q, k, i);
    Sums sums;
    sums.values.assign(static_cast<size_t>(c), 0.0);
    for (size_t begin = 0; begin < set.size(); begin += kInt16Group) {
      const size_t end = std::min(set.size(), begin + kInt16Group);
      sums.add_group({scores.begin() + static_cast<int64_t>(begin),
                      scores.begin() + static_cast<int64_t>(end)},
                     k, begin);
    }
    float* out = a.out + (t * a.heads + h) * c;
    for (int64_t d = 0; d < c; ++d) {
      out[d] = static_cast<float>(sums.values[static_cast<size_t>(d)] / sums.sum);
    }
    if (a.mass == nullptr) continue;
    for (size_t i = 0; i < set.size(); ++i) {
      a.mass[t * a.mass_stride + set[i]] +=
          static_cast<float>(std::exp(scores[i] - sums.max) / sums.sum);
    }
  }
}

}  // namespace tamis
