#include "kernels/indexer_kl/indexer_kl.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/indexer_kl/indexer_kl_impl.h"
#include "kernels/mla_dense/mla_dense_backward_impl.h"
#include "kernels/mla_sparse/mla_sparse_backward_impl.h"
#include "kernels/plain_rows.h"
#include "kernels/simd/targets.h"

namespace tamis {
namespace {

using plain::dot;

template <typename T>
void clear_gradients(const IndexerSequence<T>& x) {
  std::fill_n(x.dq, x.tokens * x.heads * x.dim, T{0});
  std::fill_n(x.dw, x.tokens * x.heads, T{0});
  std::fill_n(x.dk, x.tokens * x.dim, T{0});
}

// Query t against the positions `set`, with the target p of each.
template <typename T>
void query(const IndexerSequence<T>& x, int64_t t, const std::vector<int64_t>& set,
           const std::vector<double>& p) {
  const T* q = x.q + t * x.heads * x.dim;
  const T* w = x.w + t * x.heads;
  std::vector<double> score;
  for (const int64_t s : set) {
    double sum = 0;
    for (int64_t j = 0; j < x.heads; ++j) {
      sum += w[j] * std::max(0.0, dot(q + j * x.dim, x.k + s * x.dim, x.dim));
    }
    score.push_back(sum);
  }
  x.kl[t] = kl_row(p.data(), static_cast<int64_t>(set.size()), x.scale, score.data());
  for (size_t i = 0; i < set.size(); ++i) {
    const T* k = x.k + set[i] * x.dim;
    for (int64_t j = 0; j < x.heads; ++j) {
      const double product = dot(q + j * x.dim, k, x.dim);
      if (!(product > 0)) continue;
      x.dw[t * x.heads + j] += static_cast<T>(score[i] * product);
      const double g = score[i] * w[j];
      for (int64_t d = 0; d < x.dim; ++d) {
        x.dq[(t * x.heads + j) * x.dim + d] += static_cast<T>(g * k[d]);
        x.dk[set[i] * x.dim + d] += static_cast<T>(g * q[j * x.dim + d]);
      }
    }
  }
}

template <typename T>
std::vector<double> mean_probabilities(const MlaSequence<T>& in, int64_t t,
                                       const SelectionMask& selected) {
  std::vector<double> mean(static_cast<size_t>(t + 1));
  for (int64_t h = 0; h < in.heads; ++h) {
    const std::vector<double> p = mla_probabilities(in, t, h, selected);
    for (size_t s = 0; s < p.size(); ++s) mean[s] += p[s] / static_cast<double>(in.heads);
  }
  return mean;
}

// run for each sequence.
template <typename T, void (*run)(KernelContext&, const IndexerKlDenseArgs<T>&)>
void each(KernelContext& context, const IndexerKlDenseArgs<T>& a) {
  for_each_begin(a.begins, a.indexer.tokens, [&](int64_t first, int64_t tokens) {
    IndexerSequence<T> x = a.indexer;
    const int64_t row = x.heads * x.dim;
    x.q += first * row;
    x.w += first * x.heads;
    x.k += first * x.dim;
    x.tokens = tokens;
    x.kl += first;
    x.dq += first * row;
    x.dw += first * x.heads;
    x.dk += first * x.dim;
    run(context,
        {x, mla_sequence_at(a.attention, first, tokens), {}, nullptr, a.selected.from(first)});
  });
}

bool takes_all(const IndexerKlDenseArgs<float>& a) { return !a.selected; }

constexpr Implementation<IndexerKlDenseArgs<float>> kDenseFloat[] = {
    {"cuda_flash", indexer_kl_flash_supports, indexer_kl_dense_flash},
    {"cuda", takes_all, each<float, indexer_kl_dense_cuda>},
    {"simd", [](const IndexerKlDenseArgs<float>& a) { return takes_all(a) && vectors_available(); },
     each<float, indexer_kl_dense_blocked>},
    {"reference", [](const IndexerKlDenseArgs<float>&) { return true; },
     each<float, indexer_kl_dense_reference<float>>},
};
constexpr Implementation<IndexerKlDenseArgs<double>> kDenseDouble[] = {
    {"reference", [](const IndexerKlDenseArgs<double>&) { return true; },
     each<double, indexer_kl_dense_reference<double>>},
};
constexpr Implementation<IndexerKlSparseArgs<float>> kSparseFloat[] = {
    {"cuda_few", indexer_kl_few_supports, indexer_kl_sparse_few},
    {"cuda_many", indexer_kl_many_supports, indexer_kl_sparse_many},
    {"cuda", [](const IndexerKlSparseArgs<float>&) { return true; }, indexer_kl_sparse_cuda},
    {"simd", [](const IndexerKlSparseArgs<float>&) { return vectors_available(); },
     indexer_kl_sparse_gathered},
    {"reference", [](const IndexerKlSparseArgs<float>&) { return true; },
     indexer_kl_sparse_reference<float>},
};
constexpr Implementation<IndexerKlSparseArgs<double>> kSparseDouble[] = {
    {"reference", [](const IndexerKlSparseArgs<double>&) { return true; },
     indexer_kl_sparse_reference<double>},
};

}  // namespace

template <typename T>
double kl_row(const T* p, int64_t n, double scale, T* score) {
  const double top = *std::max_element(score, score + n);
  double sum = 0, kl = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(score[i] - top);
  const double lse = top + std::log(sum);
  for (int64_t i = 0; i < n; ++i) {
    const double log_q = score[i] - lse;
    if (p[i] > 0) kl += p[i] * (std::log(static_cast<double>(p[i])) - log_q);
    score[i] = static_cast<T>(scale * (std::exp(log_q) - p[i]));
  }
  return kl;
}

template double kl_row(const float*, int64_t, double, float*);
template double kl_row(const double*, int64_t, double, double*);

template <typename T>
void indexer_kl_dense_reference(KernelContext&, const IndexerKlDenseArgs<T>& a) {
  clear_gradients(a.indexer);
  for (int64_t t = 0; t < a.indexer.tokens; ++t) {
    const std::vector<double> mean = mean_probabilities(a.attention, t, a.selected);
    std::vector<int64_t> set;
    std::vector<double> p;
    for (int64_t s = 0; s <= t; ++s) {
      if (!a.selected.has(t, s)) continue;
      set.push_back(s);
      p.push_back(mean[static_cast<size_t>(s)]);
    }
    query(a.indexer, t, set, p);
  }
}

template <typename T>
void indexer_kl_sparse_reference(KernelContext&, const IndexerKlSparseArgs<T>& a) {
  clear_gradients(a.indexer);
  for (int64_t t = 0; t < a.indexer.tokens; ++t) {
    const int32_t* indices = a.indices + t * a.count;
    const T* p = a.p + t * a.count;
    const int64_t n = selected_count(indices, a.count);
    query(a.indexer, t, std::vector<int64_t>(indices, indices + n), std::vector<double>(p, p + n));
  }
}

bool masked_attention_supported(const KernelContext& context,
                                const IndexerKlDenseArgs<float>& shapes) {
  return context.device() == nullptr || indexer_kl_flash_supports(shapes);
}

template <>
void indexer_kl_dense(KernelContext& context, const IndexerKlDenseArgs<float>& args) {
  dispatch<IndexerKlDenseArgs<float>>(context, "indexer_kl_dense", kDenseFloat, args);
}
template <>
void indexer_kl_dense(KernelContext& context, const IndexerKlDenseArgs<double>& args) {
  dispatch<IndexerKlDenseArgs<double>>(context, "indexer_kl_dense", kDenseDouble, args);
}
template <>
void indexer_kl_sparse(KernelContext& context, const IndexerKlSparseArgs<float>& args) {
  dispatch<IndexerKlSparseArgs<float>>(context, "indexer_kl_sparse", kSparseFloat, args);
}
template <>
void indexer_kl_sparse(KernelContext& context, const IndexerKlSparseArgs<double>& args) {
  dispatch<IndexerKlSparseArgs<double>>(context, "indexer_kl_sparse", kSparseDouble, args);
}

template void indexer_kl_dense_reference(KernelContext&, const IndexerKlDenseArgs<float>&);
template void indexer_kl_dense_reference(KernelContext&, const IndexerKlDenseArgs<double>&);
template void indexer_kl_sparse_reference(KernelContext&, const IndexerKlSparseArgs<float>&);
template void indexer_kl_sparse_reference(KernelContext&, const IndexerKlSparseArgs<double>&);

}  // namespace tamis
