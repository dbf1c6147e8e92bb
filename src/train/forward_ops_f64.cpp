#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/indexer_select/mask_selection.h"
#include "kernels/matmul/grouped_matmul.h"
#include "kernels/plain_rows.h"
#include "train/forward_ops.h"

namespace tamis {
namespace {

using Doubles = std::vector<double>;

using plain::dot;

void softmax(Doubles& x) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& v : x) sum += v = std::exp(v - top);
  for (double& v : x) v /= sum;
}

// The `count` best of x by value, ties to the lower index; ascending.
std::vector<int32_t> best(const Doubles& x, int64_t count) {
  std::vector<int32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)];
  });
  order.resize(std::min(order.size(), static_cast<size_t>(count)));
  std::sort(order.begin(), order.end());
  return order;
}

// The experts of the best groups; the others' biased scores become -inf.
void keep_groups(const ModelConfig& c, Doubles& biased) {
  const int64_t size = c.num_experts / c.num_groups;
  Doubles group;
  for (int64_t g = 0; g < c.num_groups; ++g) {
    Doubles own(biased.begin() + g * size, biased.begin() + (g + 1) * size);
    std::sort(own.rbegin(), own.rend());
    group.push_back(own.size() > 1 ? own[0] + own[1] : own[0]);
  }
  const std::vector<int32_t> kept = best(group, c.topk_group);
  for (int64_t e = 0; e < c.num_experts; ++e) {
    const auto g = static_cast<int32_t>(e / size);
    if (!std::binary_search(kept.begin(), kept.end(), g)) {
      biased[static_cast<size_t>(e)] = -std::numeric_limits<double>::infinity();
    }
  }
}

}  // namespace

template <>
void ForwardOps<double>::products(KernelContext& context, std::span<const Product<double>> list) {
  for (const Product<double>& p : list) {
    matmul<double>(context, {p.x, p.x_stride, 1, p.w, 1, p.cols, p.y, p.rows, p.m, p.rows, p.cols});
  }
}

template <>
void ForwardOps<double>::rms_norm(KernelContext&, const double* x, int64_t x_stride,
                                  const double* w, int64_t rows, int64_t width, double eps,
                                  double* y, uint16_t*) {
  for (int64_t r = 0; r < rows; ++r) {
    const double* row = x + r * x_stride;
    const double scale = 1 / std::sqrt(dot(row, row, width) / static_cast<double>(width) + eps);
    for (int64_t i = 0; i < width; ++i) y[r * width + i] = w[i] * row[i] * scale;
  }
}

template <>
void ForwardOps<double>::layer_norm(KernelContext&, const double* x, const double* w,
                                    const double* b, int64_t rows, int64_t width, double eps,
                                    double* y) {
  const auto n = static_cast<double>(width);
  for (int64_t r = 0; r < rows; ++r, x += width, y += width) {
    const double mean = std::accumulate(x, x + width, 0.0) / n;
    double square = 0;
    for (int64_t i = 0; i < width; ++i) square += (x[i] - mean) * (x[i] - mean);
    const double scale = 1 / std::sqrt(square / n + eps);
    for (int64_t i = 0; i < width; ++i) y[i] = (x[i] - mean) * scale * w[i] + b[i];
  }
}

template <>
void ForwardOps<double>::swiglu(KernelContext&, const double* gate, const double* up, int64_t count,
                                double* y, uint16_t*) {
  for (int64_t i = 0; i < count; ++i) y[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
}

template <>
void ForwardOps<double>::embedding(KernelContext&, const double* table, const ModelConfig& config,
                                   const int32_t* ids, int64_t tokens, double* y) {
  for (int64_t t = 0; t < tokens; ++t) {
    y = std::copy_n(table + ids[t] * config.hidden_size, config.hidden_size, y);
  }
}

template <>
void ForwardOps<double>::permute(KernelContext&, const ModelConfig& c, const int32_t* ids,
                                 const double* x, int64_t tokens, int32_t* row_of, int64_t* offsets,
                                 double* rows, uint16_t*) {
  const int64_t pairs = tokens * c.experts_per_token, d = c.hidden_size;
  std::vector<int64_t> next(static_cast<size_t>(c.num_experts + 1));
  for (int64_t i = 0; i < pairs; ++i) ++next[static_cast<size_t>(ids[i]) + 1];
  std::partial_sum(next.begin(), next.end(), next.begin());
  std::copy(next.begin(), next.end(), offsets);
  for (int64_t i = 0; i < pairs; ++i) {
    row_of[i] = static_cast<int32_t>(next[static_cast<size_t>(ids[i])]++);
    std::copy_n(x + i / c.experts_per_token * d, d, rows + row_of[i] * d);
  }
}

template <>
void ForwardOps<double>::expert_products(KernelContext& context, const ExpertRows& rows,
                                         std::span<const ExpertProduct<double>> list) {
  for (const ExpertProduct<double>& p : list) {
    const GroupedMatmulArgs<double> args{
        {p.x, p.cols, 1, p.w, 1, p.cols, p.y, p.rows, rows.all, p.rows, p.cols},
        GroupedOver::kRows,
        p.w_stride,
        rows.offsets,
        rows.experts};
    grouped_matmuls<double>(context, {&args, 1});
  }
}

template <>
void ForwardOps<double>::moe_gate(KernelContext&, const ModelConfig& c, const double* logits,
                                  const double* bias, int64_t tokens, int32_t* ids,
                                  double* weights) {
  for (int64_t t = 0; t < tokens; ++t, logits += c.num_experts) {
    Doubles s, biased;
    for (int64_t e = 0; e < c.num_experts; ++e) {
      s.push_back(1 / (1 + std::exp(-logits[e])));
      biased.push_back(s.back() + bias[e]);
    }
    keep_groups(c, biased);
    double total = 1e-20;
    for (const int32_t e : best(biased, c.experts_per_token)) {
      total += s[static_cast<size_t>(e)];
      *ids++ = e;
    }
    for (int64_t i = -c.experts_per_token; i < 0; ++i) {
      const double score = s[static_cast<size_t>(ids[i])];
      *weights++ =
          (c.norm_topk_prob ? score / total : score) * static_cast<double>(c.routed_scaling_factor);
    }
  }
}

namespace {

void attend_sequence(const MlaSequence<double>& in, const SelectionMask& selected, double* out) {
  for (int64_t row = 0; row < in.tokens * in.heads; ++row) {
    const int64_t t = row / in.heads, h = row % in.heads;
    const double* q = in.q + row * (in.nope + in.rope);
    const auto kv = [&](int64_t s) { return in.kv + (s * in.heads + h) * (in.nope + in.v_dim); };
    Doubles p;
    std::vector<int64_t> set;
    for (int64_t s = 0; s <= t; ++s) {
      if (!selected.has(t, s)) continue;
      set.push_back(s);
      p.push_back(in.softmax_scale *
                  (dot(q, kv(s), in.nope) + dot(q + in.nope, in.k_pe + s * in.rope, in.rope)));
    }
    softmax(p);
    std::fill_n(out + row * in.v_dim, in.v_dim, 0.0);
    for (size_t j = 0; j < set.size(); ++j) {
      for (int64_t i = 0; i < in.v_dim; ++i) {
        out[row * in.v_dim + i] += p[j] * kv(set[j])[in.nope + i];
      }
    }
  }
}

}  // namespace

template <>
void ForwardOps<double>::attend_dense(KernelContext&, const MlaSequence<double>& in,
                                      std::span<const int64_t> begins,
                                      const SelectionMask& selected, double* out, double*) {
  for_each_begin(begins, in.tokens, [&](int64_t first, int64_t tokens) {
    attend_sequence(mla_sequence_at(in, first, tokens), selected.from(first),
                    out + first * in.heads * in.v_dim);
  });
}

template <>
void ForwardOps<double>::select(KernelContext&, const SelectArgs& a, int32_t* indices) {
  std::fill_n(indices, a.tokens * a.topk, -1);
  for (int64_t t = 0; t < a.tokens; ++t) {
    Doubles score;
    for (int64_t s = 0; s <= t; ++s) {
      double sum = 0;
      for (int64_t j = 0; j < a.heads; ++j) {
        const double* q = a.q + (t * a.heads + j) * a.dim;
        sum += a.w[t * a.heads + j] * std::max(0.0, dot(q, a.keys + s * a.dim, a.dim));
      }
      score.push_back(sum);
    }
    const std::vector<int32_t> set = best(score, a.topk);
    std::copy(set.begin(), set.end(), indices + t * a.topk);
  }
}

template <>
void ForwardOps<double>::select_mask(KernelContext& context, const SelectArgs& a, int32_t* indices,
                                     const MaskTo& mask) {
  select(context, a, indices);
  mask_selection(context,
                 {indices, a.tokens, a.topk, a.sequences, mask.bits, mask.stride, mask.words});
}

template <>
void ForwardOps<double>::attend_sparse(KernelContext&, const MlaSparseBackwardArgs<double>& in,
                                       double* out, double*, double*) {
  for (int64_t row = 0; row < in.tokens * in.heads; ++row) {
    const int32_t* set = in.indices + row / in.heads * in.k;
    Doubles p;
    for (int64_t i = 0; i < in.k && set[i] >= 0; ++i) {
      p.push_back(in.softmax_scale *
                  (dot(in.q_latent + row * in.kv_lora, in.c_kv + set[i] * in.kv_lora, in.kv_lora) +
                   dot(in.q_pe + row * in.q_pe_stride, in.k_pe + set[i] * in.rope, in.rope)));
    }
    softmax(p);
    std::fill_n(out + row * in.kv_lora, in.kv_lora, 0.0);
    for (size_t i = 0; i < p.size(); ++i) {
      for (int64_t c = 0; c < in.kv_lora; ++c) {
        out[row * in.kv_lora + c] += p[i] * in.c_kv[set[i] * in.kv_lora + c];
      }
    }
  }
}

}  // namespace tamis
