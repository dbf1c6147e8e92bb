#include "eval/verify_compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "kernels/tolerance.h"

namespace tamis {
namespace {

// Higham and Mary's probabilistic bound: a sum of n rounded terms errs by more than
// lambda sqrt(n) u with a probability below 2 exp(-lambda^2 / 2); 6 makes that 3e-8.
constexpr double kLambda = 6;
// Roundings in a row in half a layer: norm, projection down, norm, projection up, RoPE, score,
// softmax, weighted sum, projection out, residual. The feed-forward half has fewer.
constexpr double kOperations = 10;

// Gaussian errors of n elements: the largest lies near sqrt(2 ln n) standard deviations.
double largest_of(int64_t n) {
  return std::sqrt(2 * std::log(std::max<double>(2, static_cast<double>(n))));
}

const TraceTensor* find(const Trace& trace, const std::string& key) {
  const auto it = trace.find(key);
  return it == trace.end() ? nullptr : &it->second;
}

std::string layer_key(const char* name, int64_t layer, const char* tail = "") {
  return fmt::format("{}.{}{}", name, layer, tail);
}

class Comparer {
 public:
  Comparer(const Trace& want, const Trace& got, const Selections& chosen, const ModelConfig& config,
           const ModelWeights& weights, const VerifyLimits& limits)
      : want_(want),
        got_(got),
        chosen_(chosen),
        config_(config),
        weights_(weights),
        limits_(limits),
        rows_(want.at("input_ids").shape[0]),
        sound_(rows_) {}

  VerifyComparison run() {
    for (int64_t l = 0; l < config_.num_layers(); ++l) layer(l);
    const int64_t halves = 2 * config_.num_layers() + 1;
    tensor("hidden.norm", "final norm", -1, halves, 0, sound_, -1);
    tensor("logits", "logits", -1, halves, 0, sound_, -1);
    greedy();
    return std::move(out_);
  }

 private:
  void layer(int64_t l) {
    const int64_t halves = 2 * l;
    tensor(layer_key("hidden", l), "hidden", l, halves, 0, sound_, -1);
    const std::string scores = layer_key("index_scores", l);
    if (find(want_, scores) != nullptr) {
      const double error =
          tensor(scores, "index_scores", l, halves + 1, limits_.score_extra, sound_, -1);
      selection(l, error);
    }
    tensor(layer_key("attn_out", l), "attn_out", l, halves + 1, 0, sound_, -1);
    const int64_t row = experts(l, halves + 2);
    tensor(layer_key("mlp_out", l), "mlp_out", l, halves + 2, 0, sound_, row);
    // Later tokens read what a differently routed one left in the cache.
    if (row >= 0) sound_ = std::min(sound_, row);
  }

  // Compares rows below `rows` but `skip`; returns the largest error an element may have.
  double tensor(const std::string& key, const char* name, int64_t layer, int64_t halves,
                double extra, int64_t rows, int64_t skip) {
    const TraceTensor& a = want_.at(key);
    const TraceTensor* found = find(got_, key);
    if (found == nullptr || found->shape != a.shape) {
      throw UsageError("verify: the runs differ in the shape of " + key);
    }
    const TraceTensor& b = *found;
    TensorError e;
    e.name = name;
    e.layer = layer;
    e.rows = a.shape[0];
    const int64_t cols = a.shape[1];
    double diff = 0, norm = 0, largest_row = 0;
    int64_t count = 0;
    bool finite = true;
    for (int64_t t = 0; t < std::min(rows, e.rows); ++t) {
      if (t == skip) continue;
      double row = 0;
      int64_t used = 0;
      for (int64_t i = t * cols; i < (t + 1) * cols; ++i) {
        const double x = a.floats[static_cast<size_t>(i)], y = b.floats[static_cast<size_t>(i)];
        if (std::isinf(x) && x == y) continue;  // a score of a later position
        const double d = y - x;
        finite = finite && std::isfinite(d);
        e.max_abs = std::max(e.max_abs, std::abs(d));
        diff += d * d;
        row += x * x;
        ++used;
      }
      norm += row;
      count += used;
      if (used > 0) largest_row = std::max(largest_row, std::sqrt(row / static_cast<double>(used)));
      ++e.compared;
    }
    e.rel_rms = norm > 0 ? std::sqrt(diff / norm) : std::sqrt(diff);
    if (!finite) e.rel_rms = e.max_abs = std::numeric_limits<double>::infinity();
    e.rel_rms_limit = relative_limit(limits_, halves) + extra;
    e.max_abs_limit = e.rel_rms_limit * largest_row * largest_of(count);
    if (!e.pass()) {
      fail(layer, fmt::format("{} differs by {:.2g} of its size (at most {:.2g}), {:.2g} at most "
                              "(limit {:.2g})",
                              name, e.rel_rms, e.rel_rms_limit, e.max_abs, e.max_abs_limit));
    }
    out_.tensors.push_back(e);
    return e.max_abs_limit;
  }

  // Sets must be equal but for entries whose scores lie within the error of both runs of the
  // smallest score that was selected.
  void selection(int64_t l, double error) {
    const auto it = chosen_.find(l);
    const TraceTensor* want = find(want_, layer_key("topk", l));
    if (it == chosen_.end() || want == nullptr) return;
    const TraceTensor& scores = want_.at(layer_key("index_scores", l));
    const int64_t k = want->shape[1], stride = scores.shape[1];
    DecisionError d{"selection", l, rows_, 0, 0, 0, 1};
    int64_t entries = 0, both = 0;
    for (int64_t t = 0; t < rows_; ++t) {
      const std::vector<int64_t> a(want->ints.begin() + t * k, want->ints.begin() + (t + 1) * k);
      const std::vector<int64_t> b(it->second.begin() + t * k, it->second.begin() + (t + 1) * k);
      const float* row = scores.floats.data() + t * stride;
      double bound = std::numeric_limits<double>::infinity();
      for (const int64_t s : a) {
        if (s >= 0) bound = std::min(bound, static_cast<double>(row[s]));
      }
      bool equal = true, close = true;
      const auto judge = [&](const std::vector<int64_t>& in, const std::vector<int64_t>& other) {
        for (const int64_t s : in) {
          if (s < 0) continue;
          if (std::find(other.begin(), other.end(), s) != other.end()) continue;
          equal = false;
          close = close && s <= t && std::abs(row[s] - bound) <= 2 * error;
        }
      };
      judge(a, b);
      judge(b, a);
      for (const int64_t s : a) {
        entries += s >= 0;
        both += s >= 0 && std::find(b.begin(), b.end(), s) != b.end();
      }
      equal ? ++d.equal : t >= sound_ || close ? ++d.excused : ++d.wrong;
    }
    d.overlap = entries > 0 ? static_cast<double>(both) / static_cast<double>(entries) : 1;
    push(d);
  }

  // How far the choice of experts of one row is from another one, in biased scores.
  double expert_margin(int64_t l, const float* scores) const {
    const std::vector<float>& bias = weights_.layers[static_cast<size_t>(l)].moe.bias.values;
    std::vector<double> b;
    for (int64_t e = 0; e < config_.num_experts; ++e) {
      const auto i = static_cast<size_t>(e);
      b.push_back(static_cast<double>(scores[e]) + (bias.empty() ? 0.0 : bias[i]));
    }
    double margin = std::numeric_limits<double>::infinity();
    if (config_.num_groups > 1 && config_.topk_group < config_.num_groups) {
      margin = keep_groups(b);
    }
    std::sort(b.rbegin(), b.rend());
    const auto k = static_cast<size_t>(config_.experts_per_token);
    if (k < b.size() && std::isfinite(b[k])) margin = std::min(margin, b[k - 1] - b[k]);
    return margin;
  }

  // Drops the experts of groups that are not kept; the margin of that choice, for one expert: a
  // group's score is the sum of two.
  double keep_groups(std::vector<double>& b) const {
    const auto size = b.size() / static_cast<size_t>(config_.num_groups);
    std::vector<double> sums, order;
    for (size_t g = 0; g < b.size(); g += size) {
      std::vector<double> group(b.begin() + static_cast<int64_t>(g),
                                b.begin() + static_cast<int64_t>(g + size));
      std::sort(group.rbegin(), group.rend());
      sums.push_back(group[0] + (size > 1 ? group[1] : 0));
    }
    order = sums;
    std::sort(order.rbegin(), order.rend());
    const auto kept = static_cast<size_t>(config_.topk_group);
    for (size_t i = 0; i < b.size(); ++i) {
      if (sums[i / size] < order[kept - 1]) b[i] = -std::numeric_limits<double>::infinity();
    }
    return (order[kept - 1] - order[kept]) / 2;
  }

  // Returns the first row that was routed differently, -1 if none was.
  int64_t experts(int64_t l, int64_t halves) {
    const TraceTensor* a = find(want_, layer_key("router", l, ".ids"));
    if (a == nullptr) return -1;
    const TraceTensor& b = got_.at(layer_key("router", l, ".ids"));
    const double error =
        tensor(layer_key("router", l, ".logits"), "router", l, halves, 0, sound_, -1);
    const TraceTensor& scores = want_.at(layer_key("router", l, ".scores"));
    const int64_t k = a->shape[1];
    DecisionError d{"experts", l, rows_, 0, 0, 0, 1};
    int64_t first = -1, both = 0;
    for (int64_t t = 0; t < rows_; ++t) {
      const auto row = [&](const TraceTensor& x) { return x.ints.begin() + t * k; };
      for (int64_t i = 0; i < k; ++i) {
        both += std::find(row(b), row(b) + k, row(*a)[i]) != row(b) + k;
      }
      if (std::equal(row(*a), row(*a) + k, row(b))) {
        ++d.equal;
        continue;
      }
      if (first < 0) first = t;
      // A sigmoid moves by at most a quarter of what its argument does, a softmax by at most half.
      const double moved = error * (config_.softmax_scores ? 0.5 : 0.25);
      const bool close =
          expert_margin(l, scores.floats.data() + t * config_.num_experts) <= 2 * moved;
      t >= sound_ || close ? ++d.excused : ++d.wrong;
    }
    d.overlap = static_cast<double>(both) / static_cast<double>(rows_ * k);
    push(d);
    return first;
  }

  // Tokens must be equal until the best two logits come within the error of both runs.
  void greedy() {
    const TraceTensor* a = find(want_, "greedy.ids");
    if (a == nullptr) return;
    const TraceTensor& b = got_.at("greedy.ids");
    const TraceTensor& logits = want_.at("greedy.logits");
    const int64_t steps = a->shape[0], vocab = logits.shape[1];
    int64_t same = 0;
    while (same < steps &&
           a->ints[static_cast<size_t>(same)] == b.ints[static_cast<size_t>(same)]) {
      ++same;
    }
    // The logits of the step where the tokens part still come from equal tokens.
    const double error =
        tensor("greedy.logits", "greedy logits", -1, 2 * config_.num_layers() + 1, 0, same + 1, -1);
    DecisionError d{"greedy tokens", -1, steps, same, 0, 0, 1};
    if (same < steps) {
      std::vector<float> row(logits.floats.begin() + same * vocab,
                             logits.floats.begin() + (same + 1) * vocab);
      std::partial_sort(row.begin(), row.begin() + 2, row.end(), std::greater<>());
      const bool close = static_cast<double>(row[0]) - row[1] <= 2 * error;
      (close ? d.excused : d.wrong) = steps - same;
    }
    d.overlap = steps > 0 ? static_cast<double>(same) / static_cast<double>(steps) : 1;
    push(d);
  }

  void push(const DecisionError& d) {
    if (!d.pass()) {
      fail(d.layer, fmt::format("{}: {} of {} rows differ by more than rounding explains", d.name,
                                d.wrong, d.rows));
    }
    out_.decisions.push_back(d);
  }

  void fail(int64_t layer, const std::string& what) {
    out_.failures.push_back(layer < 0 ? what : fmt::format("layer {}: {}", layer, what));
  }

  const Trace &want_, &got_;
  const Selections& chosen_;
  const ModelConfig& config_;
  const ModelWeights& weights_;
  const VerifyLimits& limits_;
  int64_t rows_;
  int64_t sound_;  // rows from here on follow an excused decision
  VerifyComparison out_;
};

}  // namespace

VerifyLimits limits_of(const ModelConfig& config, bool native, bool fp8_keys) {
  VerifyLimits l;
  if (native) {
    // Sums are exact to bf16; what differs is where a rounding falls, here at worst in every step.
    l.unit = kUnitBf16;
  } else {
    l.unit = kUnitF32;
    l.lambda = kLambda;
    l.longest_sum =
        static_cast<double>(std::max({config.hidden_size, config.intermediate, config.q_lora,
                                      config.moe_intermediate, config.num_heads * config.v_head}));
  }
  if (fp8_keys) l.score_extra = kUnitE4m3;
  return l;
}

double relative_limit(const VerifyLimits& limits, int64_t half_blocks) {
  const double operations = kOperations * static_cast<double>(std::max<int64_t>(half_blocks, 1));
  return limits.lambda * limits.unit * std::sqrt(limits.longest_sum * operations);
}

VerifyComparison compare_traces(const Trace& want, const Trace& got, const Selections& chosen,
                                const ModelConfig& config, const ModelWeights& weights,
                                const VerifyLimits& limits) {
  return Comparer(want, got, chosen, config, weights, limits).run();
}

}  // namespace tamis
