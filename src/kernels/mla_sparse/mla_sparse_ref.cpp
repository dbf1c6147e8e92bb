#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/mla_sparse/mla_sparse_impl.h"
#include "kernels/mla_sparse/mla_sparse_int16.h"
#include "kernels/plain_rows.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

// The positions of token t.
std::vector<int64_t> selected(const MlaSparseArgs& a, int64_t t) {
  std::vector<int64_t> set;
  if (a.indices == nullptr) {
    for (int64_t s = 0; s <= a.tokens.position[t]; ++s) set.push_back(s);
    return set;
  }
  for (int64_t i = 0; i < a.k && a.indices[t * a.k + i] >= 0; ++i) {
    set.push_back(a.indices[t * a.k + i]);
  }
  return set;
}

using plain::dot;

void softmax(std::vector<double>& x, bool round_bf16) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& v : x) sum += v = std::exp(v - top);
  for (double& v : x) {
    v /= sum;
    if (round_bf16) v = round_to_bf16(static_cast<float>(v));
  }
}

void attend(const MlaSparseArgs& a, int64_t t, const std::vector<int64_t>& set,
            const std::vector<float>& rows) {
  const int64_t c = a.kv.layout.kv_lora, width = c + a.kv.layout.rope;
  std::vector<double> p(set.size()), sum(static_cast<size_t>(c));
  for (int64_t h = 0; h < a.heads; ++h) {
    const float* q = a.q_latent + (t * a.heads + h) * c;
    const float* q_pe = a.q_pe + t * a.q_pe_token_stride + h * a.q_pe_head_stride;
    for (size_t i = 0; i < set.size(); ++i) {
      const float* row = &rows[i * static_cast<size_t>(width)];
      p[i] = a.softmax_scale * (dot(q, row, c) + dot(q_pe, row + c, width - c));
    }
    softmax(p, a.round_bf16);
    std::fill(sum.begin(), sum.end(), 0.0);
    for (size_t i = 0; i < set.size(); ++i) {
      const float* row = &rows[i * static_cast<size_t>(width)];
      for (int64_t d = 0; d < c; ++d) sum[static_cast<size_t>(d)] += p[i] * row[d];
      if (a.mass != nullptr) a.mass[t * a.mass_stride + set[i]] += static_cast<float>(p[i]);
    }
    float* out = a.out + (t * a.heads + h) * c;
    for (int64_t d = 0; d < c; ++d) out[d] = static_cast<float>(sum[static_cast<size_t>(d)]);
  }
}

}  // namespace

void mla_sparse_reference(KernelContext& context, const MlaSparseArgs& a) {
  const int64_t width = a.kv.layout.kv_lora + a.kv.layout.rope;
  context.pool().run(a.tokens.num_tokens, [&](int64_t t, int) {
    const std::vector<int64_t> set = selected(a, t);
    std::vector<float> rows(set.size() * static_cast<size_t>(width));
    const KvSequence& seq = a.tokens.sequences[a.tokens.sequence[t]];
    for (size_t i = 0; i < set.size(); ++i) {
      read_latent(a.kv, seq, set[i], &rows[i * static_cast<size_t>(width)]);
    }
    if (a.mass != nullptr) {
      std::fill_n(a.mass + t * a.mass_stride, a.mass_stride, 0.0f);
    }
    const bool int16 = a.int16 && static_cast<int64_t>(set.size()) >= kFewestInt16Entries;
    int16 ? mla_sparse_int16_token(a, t, set, rows) : attend(a, t, set, rows);
  });
}

}  // namespace tamis
