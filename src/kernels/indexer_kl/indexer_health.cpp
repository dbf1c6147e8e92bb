#include "kernels/indexer_kl/indexer_health.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/indexer_kl/indexer_health_impl.h"
#include "kernels/mla_dense/mla_dense_backward_impl.h"
#include "kernels/plain_rows.h"
#include "kernels/simd/targets.h"
#include "kernels/topk/topk.h"

namespace tamis {
namespace {

std::vector<int32_t> best(const float* x, int64_t n, int64_t k) {
  std::vector<float> work(static_cast<size_t>(n));
  std::vector<int32_t> indices(static_cast<size_t>(k));
  topk_row(x, n, k, work.data(), indices.data());
  return indices;
}

double sum_over(const float* p, const std::vector<int32_t>& set) {
  double sum = 0;
  for (const int32_t s : set) sum += p[s];
  return sum;
}

// kl and entropy, over everything.
void measure_distribution(const HealthRow& r, IndexerHealth& h) {
  const double top = *std::max_element(r.score, r.score + r.n);
  double sum = 0;
  for (int64_t s = 0; s < r.n; ++s) sum += std::exp(r.score[s] - top);
  const double lse = top + std::log(sum);
  double entropy = 0;
  for (int64_t s = 0; s < r.n; ++s) {
    const double log_q = r.score[s] - lse, p = r.mean[s];
    if (p > 0) h.kl += p * (std::log(p) - log_q);
    entropy -= std::exp(log_q) * log_q;
  }
  h.entropy = r.n > 1 ? entropy / std::log(static_cast<double>(r.n)) : 1;
}

// What follows from S_t.
void measure_selection(const HealthRow& r, IndexerHealth& h) {
  const auto k = static_cast<double>(r.k);
  const std::vector<int32_t> set = best(r.score, r.n, r.k), wanted = best(r.mean, r.n, r.k);
  std::vector<int32_t> both;
  std::set_intersection(set.begin(), set.end(), wanted.begin(), wanted.end(),
                        std::back_inserter(both));
  h.selecting = 1;
  h.recall = static_cast<double>(both.size()) / k;
  h.mass = sum_over(r.mean, set);
  h.best_mass = sum_over(r.mean, wanted);
  h.worst_mass = 1;
  for (int64_t head = 0; head < r.heads; ++head) {
    h.worst_mass = std::min(h.worst_mass, sum_over(r.per_head + head * r.stride, set));
  }
  const auto first = static_cast<int32_t>(std::max_element(r.mean, r.mean + r.n) - r.mean);
  h.first = std::binary_search(set.begin(), set.end(), first) ? 1 : 0;
  float lowest = r.score[set[0]];
  for (const int32_t s : set) {
    lowest = std::min(lowest, r.score[s]);
    h.look_back += static_cast<double>(r.n - 1 - s) / k;
    h.window += s >= r.n - r.k ? 1 / k : 0;
  }
  h.ties = static_cast<double>(std::count(r.score, r.score + r.n, lowest));
}

template <typename T>
constexpr Implementation<IndexerHealthArgs<T>> kReference = {
    "reference", [](const IndexerHealthArgs<T>&) { return true; }, indexer_health_reference<T>};

constexpr Implementation<IndexerHealthArgs<float>> kFloat[] = {
    {"simd", [](const IndexerHealthArgs<float>&) { return vectors_available(); },
     indexer_health_blocked},
    kReference<float>,
};
constexpr Implementation<IndexerHealthArgs<double>> kDouble[] = {kReference<double>};

}  // namespace

void IndexerHealth::add(const IndexerHealth& o) {
  queries += o.queries;
  selecting += o.selecting;
  for (double IndexerHealth::*field :
       {&IndexerHealth::kl, &IndexerHealth::entropy, &IndexerHealth::recall, &IndexerHealth::mass,
        &IndexerHealth::worst_mass, &IndexerHealth::best_mass, &IndexerHealth::first,
        &IndexerHealth::ties, &IndexerHealth::look_back, &IndexerHealth::window,
        &IndexerHealth::negative}) {
    this->*field += o.*field;
  }
}

IndexerHealth indexer_health_row(const HealthRow& r) {
  IndexerHealth h;
  h.queries = 1;
  measure_distribution(r, h);
  if (r.n <= r.k) return h;
  measure_selection(r, h);
  int64_t below = 0;
  for (int64_t j = 0; j < r.index_heads; ++j) below += r.w[j] < 0 ? 1 : 0;
  h.negative = static_cast<double>(below) / static_cast<double>(r.index_heads);
  return h;
}

// The scores and probabilities in double; what is chosen follows from them rounded to float, as it
// does when the model runs.
template <typename T>
void indexer_health_reference(KernelContext&, const IndexerHealthArgs<T>& a) {
  const IndexerSequence<T>& x = a.indexer;
  const int64_t heads = a.attention.heads;
  for (int64_t t = 0; t < x.tokens; ++t) {
    const int64_t n = t + 1;
    std::vector<float> per_head, score, w;
    std::vector<double> mean(static_cast<size_t>(n));
    for (int64_t h = 0; h < heads; ++h) {
      const std::vector<double> p = mla_probabilities(a.attention, t, h);
      for (size_t s = 0; s < p.size(); ++s) mean[s] += p[s] / static_cast<double>(heads);
      per_head.insert(per_head.end(), p.begin(), p.end());
    }
    for (int64_t j = 0; j < x.heads; ++j) w.push_back(static_cast<float>(x.w[t * x.heads + j]));
    for (int64_t s = 0; s < n; ++s) {
      double sum = 0;
      for (int64_t j = 0; j < x.heads; ++j) {
        const T* q = x.q + (t * x.heads + j) * x.dim;
        sum += x.w[t * x.heads + j] * std::max(0.0, plain::dot(q, x.k + s * x.dim, x.dim));
      }
      score.push_back(static_cast<float>(sum));
    }
    const std::vector<float> rounded(mean.begin(), mean.end());
    a.sum->add(indexer_health_row(
        {per_head.data(), n, heads, rounded.data(), score.data(), n, a.k, w.data(), x.heads}));
  }
}

template void indexer_health_reference(KernelContext&, const IndexerHealthArgs<float>&);
template void indexer_health_reference(KernelContext&, const IndexerHealthArgs<double>&);

template <>
void indexer_health(KernelContext& context, const IndexerHealthArgs<float>& args) {
  dispatch<IndexerHealthArgs<float>>(context, "indexer_health", kFloat, args);
}
template <>
void indexer_health(KernelContext& context, const IndexerHealthArgs<double>& args) {
  dispatch<IndexerHealthArgs<double>>(context, "indexer_health", kDouble, args);
}

}  // namespace tamis
