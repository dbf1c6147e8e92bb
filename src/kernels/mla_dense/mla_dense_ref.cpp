#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/mla_dense/mla_dense_impl.h"
#include "kernels/plain_rows.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

using plain::dot;

std::vector<int64_t> selected(const MlaDenseArgs& a, int64_t t) {
  std::vector<int64_t> set;
  if (a.indices == nullptr) {
    for (int64_t s = 0; s <= a.position[t]; ++s) set.push_back(s);
    return set;
  }
  for (int64_t i = 0; i < a.k && a.indices[t * a.k + i] >= 0; ++i) {
    set.push_back(a.indices[t * a.k + i]);
  }
  return set;
}

void softmax(std::vector<double>& x, bool round_bf16) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& v : x) sum += v = std::exp(v - top);
  for (double& v : x) {
    v /= sum;
    if (round_bf16) v = round_to_bf16(static_cast<float>(v));
  }
}

void attend(const MlaDenseArgs& a, int64_t t, int64_t h) {
  const float* q = a.q + (t * a.heads + h) * (a.nope + a.rope);
  const auto kv = [&](int64_t s) { return a.kv + (s * a.heads + h) * (a.nope + a.v_dim); };
  const std::vector<int64_t> set = selected(a, t);
  std::vector<double> p;
  for (const int64_t s : set) {
    p.push_back(a.softmax_scale *
                (dot(q, kv(s), a.nope) + dot(q + a.nope, a.k_pe + s * a.rope, a.rope)));
  }
  softmax(p, a.round_bf16);
  float* out = a.out + (t * a.heads + h) * a.v_dim;
  for (int64_t d = 0; d < a.v_dim; ++d) {
    double o = 0;
    for (size_t i = 0; i < set.size(); ++i) o += p[i] * kv(set[i])[a.nope + d];
    out[d] = static_cast<float>(o);
  }
}

}  // namespace

void mla_dense_reference(KernelContext& context, const MlaDenseArgs& a) {
  context.pool().run(a.tokens * a.heads,
                     [&](int64_t i, int) { attend(a, i / a.heads, i % a.heads); });
}

}  // namespace tamis
