#include "kernels/mla_sparse/mla_sparse_backward.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/mla_sparse/mla_sparse_backward_impl.h"
#include "kernels/plain_rows.h"
#include "kernels/simd/targets.h"

namespace tamis {
namespace {

using plain::add_scaled;
using plain::dot;

template <typename T>
std::vector<double> probabilities(const MlaSparseBackwardArgs<T>& a, int64_t t, int64_t h) {
  const int64_t row = t * a.heads + h;
  const int32_t* set = a.indices + t * a.k;
  std::vector<double> p;
  for (int64_t i = 0; i < selected_count(set, a.k); ++i) {
    p.push_back(a.softmax_scale *
                (dot(a.q_latent + row * a.kv_lora, a.c_kv + set[i] * a.kv_lora, a.kv_lora) +
                 dot(a.q_pe + row * a.q_pe_stride, a.k_pe + set[i] * a.rope, a.rope)));
  }
  const double top = *std::max_element(p.begin(), p.end());
  double sum = 0;
  for (double& v : p) sum += v = std::exp(v - top);
  for (double& v : p) v /= sum;
  return p;
}

template <typename T>
void backward_query(const MlaSparseBackwardArgs<T>& a, int64_t t, int64_t h) {
  const int64_t row = t * a.heads + h;
  const int32_t* set = a.indices + t * a.k;
  const T* d_out = a.d_out + row * a.kv_lora;
  const std::vector<double> p = probabilities(a, t, h);
  std::vector<double> dp;
  double mean = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    dp.push_back(dot(d_out, a.c_kv + set[i] * a.kv_lora, a.kv_lora));
    mean += p[i] * dp[i];
  }
  for (size_t i = 0; i < p.size(); ++i) {
    const double ds = a.softmax_scale * p[i] * (dp[i] - mean);
    const int64_t c = set[i] * a.kv_lora, pe = set[i] * a.rope;
    add_scaled(ds, a.c_kv + c, a.kv_lora, a.dq_latent + row * a.kv_lora);
    add_scaled(ds, a.k_pe + pe, a.rope, a.dq_pe + row * a.q_pe_stride);
    add_scaled(ds, a.q_latent + row * a.kv_lora, a.kv_lora, a.dc_kv + c);
    add_scaled(p[i], d_out, a.kv_lora, a.dc_kv + c);
    add_scaled(ds, a.q_pe + row * a.q_pe_stride, a.rope, a.dk_pe + pe);
  }
}

constexpr Implementation<MlaSparseBackwardArgs<float>> kFloat[] = {
    {"cuda_few", mla_sparse_few_supports, mla_sparse_backward_few},
    {"cuda_many", mla_sparse_many_supports, mla_sparse_backward_many},
    {"cuda", [](const MlaSparseBackwardArgs<float>&) { return true; }, mla_sparse_backward_cuda},
    {"simd", [](const MlaSparseBackwardArgs<float>&) { return vectors_available(); },
     mla_sparse_backward_gathered},
    {"reference", [](const MlaSparseBackwardArgs<float>&) { return true; },
     mla_sparse_backward_reference<float>},
};
constexpr Implementation<MlaSparseBackwardArgs<double>> kDouble[] = {
    {"reference", [](const MlaSparseBackwardArgs<double>&) { return true; },
     mla_sparse_backward_reference<double>},
};
constexpr Implementation<MlaSparseTargetArgs<float>> kTargetFloat[] = {
    {"cuda_few", [](const MlaSparseTargetArgs<float>& a) { return mla_sparse_few_supports(a.in); },
     mla_sparse_target_few},
    {"cuda_many",
     [](const MlaSparseTargetArgs<float>& a) { return mla_sparse_many_supports(a.in); },
     mla_sparse_target_many},
    {"cuda", [](const MlaSparseTargetArgs<float>&) { return true; }, mla_sparse_target_cuda},
    {"simd", [](const MlaSparseTargetArgs<float>&) { return vectors_available(); },
     mla_sparse_target_gathered},
    {"reference", [](const MlaSparseTargetArgs<float>&) { return true; },
     mla_sparse_target_reference<float>},
};
constexpr Implementation<MlaSparseTargetArgs<double>> kTargetDouble[] = {
    {"reference", [](const MlaSparseTargetArgs<double>&) { return true; },
     mla_sparse_target_reference<double>},
};

}  // namespace

template <typename T>
void mla_sparse_backward_reference(KernelContext&, const MlaSparseBackwardArgs<T>& a) {
  std::fill_n(a.dq_latent, a.tokens * a.heads * a.kv_lora, T{0});
  std::fill_n(a.dc_kv + a.first * a.kv_lora, a.tokens * a.kv_lora, T{0});
  std::fill_n(a.dk_pe + a.first * a.rope, a.tokens * a.rope, T{0});
  for (int64_t row = 0; row < a.tokens * a.heads; ++row) {
    std::fill_n(a.dq_pe + row * a.q_pe_stride, a.rope, T{0});
    backward_query(a, row / a.heads, row % a.heads);
  }
}

template <typename T>
void mla_sparse_target_reference(KernelContext&, const MlaSparseTargetArgs<T>& args) {
  const MlaSparseBackwardArgs<T>& a = args.in;
  for (int64_t t = 0; t < a.tokens; ++t) {
    std::vector<double> mean(static_cast<size_t>(a.k));
    for (int64_t h = 0; h < a.heads; ++h) {
      const std::vector<double> p = probabilities(a, t, h);
      for (size_t i = 0; i < p.size(); ++i) mean[i] += p[i] / static_cast<double>(a.heads);
    }
    for (int64_t i = 0; i < a.k; ++i) {
      args.p[t * a.k + i] = static_cast<T>(mean[static_cast<size_t>(i)]);
    }
  }
}

template <>
void mla_sparse_backward(KernelContext& context, const MlaSparseBackwardArgs<float>& args) {
  dispatch<MlaSparseBackwardArgs<float>>(context, "mla_sparse_backward", kFloat, args);
}
template <>
void mla_sparse_backward(KernelContext& context, const MlaSparseBackwardArgs<double>& args) {
  dispatch<MlaSparseBackwardArgs<double>>(context, "mla_sparse_backward", kDouble, args);
}
template <>
void mla_sparse_target(KernelContext& context, const MlaSparseTargetArgs<float>& args) {
  dispatch<MlaSparseTargetArgs<float>>(context, "mla_sparse_target", kTargetFloat, args);
}
template <>
void mla_sparse_target(KernelContext& context, const MlaSparseTargetArgs<double>& args) {
  dispatch<MlaSparseTargetArgs<double>>(context, "mla_sparse_target", kTargetDouble, args);
}

template void mla_sparse_backward_reference(KernelContext&, const MlaSparseBackwardArgs<float>&);
template void mla_sparse_backward_reference(KernelContext&, const MlaSparseBackwardArgs<double>&);
template void mla_sparse_target_reference(KernelContext&, const MlaSparseTargetArgs<float>&);
template void mla_sparse_target_reference(KernelContext&, const MlaSparseTargetArgs<double>&);

}  // namespace tamis
