#include "kernels/mla_dense/mla_dense_backward.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/mla_dense/mla_dense_backward_impl.h"
#include "kernels/plain_rows.h"
#include "kernels/simd/targets.h"

namespace tamis {
namespace {

using plain::add_scaled;
using plain::dot;

template <typename T>
void backward_query(const MlaDenseBackwardArgs<T>& a, int64_t t, int64_t h) {
  const MlaSequence<T>& in = a.in;
  const int64_t qk = in.nope + in.rope, row = t * in.heads + h;
  const T* q = in.q + row * qk;
  const T* d_out = a.d_out + row * in.v_dim;
  T* dq = a.dq + row * qk;
  const auto kv_at = [&](int64_t s) { return (s * in.heads + h) * (in.nope + in.v_dim); };
  const std::vector<double> p = mla_probabilities(in, t, h, a.selected);
  std::vector<double> dp;
  double mean = 0;
  for (int64_t s = 0; s <= t; ++s) {
    dp.push_back(dot(d_out, in.kv + kv_at(s) + in.nope, in.v_dim));
    mean += p[static_cast<size_t>(s)] * dp.back();
  }
  for (int64_t s = 0; s <= t; ++s) {
    const double ps = p[static_cast<size_t>(s)];
    const double ds = in.softmax_scale * ps * (dp[static_cast<size_t>(s)] - mean);
    add_scaled(ds, in.kv + kv_at(s), in.nope, dq);
    add_scaled(ds, in.k_pe + s * in.rope, in.rope, dq + in.nope);
    add_scaled(ds, q, in.nope, a.dkv + kv_at(s));
    add_scaled(ds, q + in.nope, in.rope, a.dk_pe + s * in.rope);
    add_scaled(ps, d_out, in.v_dim, a.dkv + kv_at(s) + in.nope);
  }
}

// run for each sequence.
template <typename T, void (*run)(KernelContext&, const MlaDenseBackwardArgs<T>&)>
void each(KernelContext& context, const MlaDenseBackwardArgs<T>& a) {
  const MlaSequence<T>& in = a.in;
  for_each_begin(a.begins, in.tokens, [&](int64_t first, int64_t tokens) {
    run(context, {mla_sequence_at(in, first, tokens),
                  a.d_out + first * in.heads * in.v_dim,
                  a.dq + first * in.heads * (in.nope + in.rope),
                  a.dkv + first * in.heads * (in.nope + in.v_dim),
                  a.dk_pe + first * in.rope,
                  {},
                  nullptr,
                  nullptr,
                  a.selected.from(first)});
  });
}

bool takes_all(const MlaDenseBackwardArgs<float>& a) { return !a.selected; }

constexpr Implementation<MlaDenseBackwardArgs<float>> kFloat[] = {
    {"cuda_flash", [](const MlaDenseBackwardArgs<float>& a) { return mla_flash_supports(a.in); },
     mla_dense_backward_flash},
    {"cuda", takes_all, each<float, mla_dense_backward_cuda>},
    {"simd",
     [](const MlaDenseBackwardArgs<float>& a) { return takes_all(a) && vectors_available(); },
     each<float, mla_dense_backward_blocked>},
    {"reference", [](const MlaDenseBackwardArgs<float>&) { return true; },
     each<float, mla_dense_backward_reference<float>>},
};
constexpr Implementation<MlaDenseBackwardArgs<double>> kDouble[] = {
    {"reference", [](const MlaDenseBackwardArgs<double>&) { return true; },
     each<double, mla_dense_backward_reference<double>>},
};

}  // namespace

template <typename T>
std::vector<double> mla_probabilities(const MlaSequence<T>& in, int64_t t, int64_t h,
                                      const SelectionMask& selected) {
  const T* q = in.q + (t * in.heads + h) * (in.nope + in.rope);
  std::vector<double> p;
  for (int64_t s = 0; s <= t; ++s) {
    if (!selected.has(t, s)) {
      p.push_back(-std::numeric_limits<double>::infinity());
      continue;
    }
    const T* k = in.kv + (s * in.heads + h) * (in.nope + in.v_dim);
    p.push_back(in.softmax_scale *
                (dot(q, k, in.nope) + dot(q + in.nope, in.k_pe + s * in.rope, in.rope)));
  }
  const double top = *std::max_element(p.begin(), p.end());
  double sum = 0;
  for (double& v : p) sum += v = std::exp(v - top);
  for (double& v : p) v /= sum;
  return p;
}

template <typename T>
void mla_dense_backward_reference(KernelContext&, const MlaDenseBackwardArgs<T>& a) {
  const MlaSequence<T>& in = a.in;
  std::fill_n(a.dq, in.tokens * in.heads * (in.nope + in.rope), T{0});
  std::fill_n(a.dkv, in.tokens * in.heads * (in.nope + in.v_dim), T{0});
  std::fill_n(a.dk_pe, in.tokens * in.rope, T{0});
  for (int64_t t = 0; t < in.tokens; ++t) {
    for (int64_t h = 0; h < in.heads; ++h) backward_query(a, t, h);
  }
}

template <>
void mla_dense_backward(KernelContext& context, const MlaDenseBackwardArgs<float>& args) {
  dispatch<MlaDenseBackwardArgs<float>>(context, "mla_dense_backward", kFloat, args);
}

template <>
void mla_dense_backward(KernelContext& context, const MlaDenseBackwardArgs<double>& args) {
  dispatch<MlaDenseBackwardArgs<double>>(context, "mla_dense_backward", kDouble, args);
}

template std::vector<double> mla_probabilities(const MlaSequence<float>&, int64_t, int64_t,
                                               const SelectionMask&);
template std::vector<double> mla_probabilities(const MlaSequence<double>&, int64_t, int64_t,
                                               const SelectionMask&);
template void mla_dense_backward_reference(KernelContext&, const MlaDenseBackwardArgs<float>&);
template void mla_dense_backward_reference(KernelContext&, const MlaDenseBackwardArgs<double>&);

}  // namespace tamis
