#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/mla_dense/mla_dense_impl.h"

namespace tamis {
namespace {

double dot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

void attend(const MlaDenseArgs& a, int64_t t, int64_t h, std::vector<double>& p) {
  const float* q = a.q + (t * a.heads + h) * (a.nope + a.rope);
  const int64_t visible = a.position[t] + 1;
  const auto kv = [&](int64_t s) { return a.kv + (s * a.heads + h) * (a.nope + a.v_dim); };
  p.resize(static_cast<size_t>(visible));
  double top = -INFINITY, sum = 0;
  for (int64_t s = 0; s < visible; ++s) {
    double& score = p[static_cast<size_t>(s)];
    score =
        a.softmax_scale * (dot(q, kv(s), a.nope) + dot(q + a.nope, a.k_pe + s * a.rope, a.rope));
    top = std::max(top, score);
  }
  for (double& v : p) sum += v = std::exp(v - top);
  float* out = a.out + (t * a.heads + h) * a.v_dim;
  for (int64_t d = 0; d < a.v_dim; ++d) {
    double o = 0;
    for (int64_t s = 0; s < visible; ++s) o += p[static_cast<size_t>(s)] * kv(s)[a.nope + d];
    out[d] = static_cast<float>(o / sum);
  }
}

}  // namespace

void mla_dense_reference(KernelContext& context, const MlaDenseArgs& a) {
  context.pool().run(a.tokens * a.heads, [&](int64_t i, int) {
    std::vector<double> p;
    attend(a, i / a.heads, i % a.heads, p);
  });
}

}  // namespace tamis
