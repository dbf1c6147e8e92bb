// The products of linear layers and experts with FP8 factors against sums in double of what the
// quantisers of inference make of the same factors. Test code only.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/memory.h"
#include "kernels/quantize_fp8/quantize_fp8.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"
#include "kernels/weight.h"
#include "tensor/convert.h"
#include "train/linear_layers.h"
#include "train/tiny.h"

namespace tamis {

struct Fp8Problem {
  int64_t m, rows, cols;              // y [m, rows], x [m, cols]
  std::vector<int64_t> offsets = {};  // of experts; empty: one matrix
  float gradient = 1;                 // a power of two that dy is scaled by
};

class Fp8Layers {
 public:
  // tensor_cores: sums of FP8 products as the tensor cores keep them.
  Fp8Layers(KernelContext& context, const Fp8Problem& problem, bool tensor_cores = false)
      : context_(context),
        q_(problem),
        tensor_cores_(tensor_cores),
        bf16_(reads_bf16(context, q_.m, {q_.rows, q_.cols})) {
    x_ = random_floats(q_.m * q_.cols, 1);
    dy_ = random_floats(q_.m * q_.rows, 2);
    w_ = random_floats(experts() * q_.rows * q_.cols, 3);
    dw_ = random_floats(experts() * q_.rows * q_.cols, 4);
    // What is large in one factor of a product is not in the other, so that every value counts.
    spread(x_, q_.m, q_.cols, 1, 1);
    spread(dy_, q_.m, q_.rows, 2, 1);
    spread(w_, q_.rows, q_.cols, 2, 2);
    spread(dw_, q_.rows, q_.cols, 1, 1);
    if (!bf16_) return;  // else they are given as bf16 alone
    for (std::vector<float>* values : {&x_, &dy_}) {
      for (float& v : *values) v = round_to_bf16(v);
    }
  }

  void expect_are_the_definition() {
    run();
    const std::vector<float> x = across(x_, q_.cols), dy = across(dy_, q_.rows);
    const std::vector<float> x_down = down(x_, q_.cols), dy_down = down(dy_, q_.rows);
    const std::vector<float> w = squares();
    for (int64_t e = 0; e < experts(); ++e) {
      const int64_t first = q_.offsets.empty() ? 0 : q_.offsets[static_cast<size_t>(e)];
      const int64_t last = q_.offsets.empty() ? q_.m : q_.offsets[static_cast<size_t>(e) + 1];
      const float* own = w.data() + e * q_.rows * q_.cols;
      for (int64_t i = first; i < last; ++i) {
        for (int64_t j = 0; j < q_.rows; ++j) {
          expect(y_, i * q_.rows + j, x.data() + i * q_.cols, 1, own + j * q_.cols, 1, q_.cols, 1,
                 0, "y");
        }
        for (int64_t j = 0; j < q_.cols; ++j) {
          expect(dx_, i * q_.cols + j, dy.data() + i * q_.rows, 1, own + j, q_.cols, q_.rows,
                 q_.gradient, 0, "dx");
        }
      }
      for (int64_t i = 0; i < q_.rows; ++i) {
        for (int64_t j = 0; j < q_.cols; ++j) {
          const int64_t at = (e * q_.rows + i) * q_.cols + j;
          expect(dw_out_, at, dy_down.data() + first * q_.rows + i, q_.rows,
                 x_down.data() + first * q_.cols + j, q_.cols, last - first, q_.gradient,
                 dw_[static_cast<size_t>(at)], "dw");
        }
      }
    }
  }

 private:
  // Makes every third row and column (from `row`, `column` on) so much larger that e4m3 has few
  // bits for the others, or none, in a block with one of them: blocks that lie another way then
  // have other codes. (Scales are powers of two, so values of like size have the same codes in any
  // block.) None gets below the floor of inference's quantisers, which training leaves out.
  static void spread(std::vector<float>& values, int64_t rows, int64_t cols, int row, int column) {
    constexpr float kLarge = 0x1p16f;
    for (size_t i = 0; i < values.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      if (at / cols % rows % 3 == row) values[i] *= kLarge;
      if (at % cols % 3 == column) values[i] *= kLarge;
    }
  }

  int64_t experts() const {
    return q_.offsets.empty() ? 1 : static_cast<int64_t>(q_.offsets.size()) - 1;
  }

  // factor * sum of `n` products, and what was there before times factor.
  void expect(const std::vector<float>& got, int64_t at, const float* a, int64_t a_step,
              const float* b, int64_t b_step, int64_t n, double factor, double before,
              const char* what) const {
    double want = before, size = std::abs(before);
    for (int64_t i = 0; i < n; ++i) {
      const double product = static_cast<double>(a[i * a_step]) * b[i * b_step];
      want += product;
      size += std::abs(product);
    }
    double bound = static_cast<double>(n + 3) * kUnitF32 * 1.01 * size;
    if (tensor_cores_) bound += sum_bound(a, a_step, b, b_step, n);
    bound *= factor;
    ASSERT_NEAR(got[static_cast<size_t>(at)], want * factor, bound)
        << what << " " << at << " of " << q_.m << " " << q_.rows << " " << q_.cols;
  }

  // FP8 tensor cores keep 14 bits of a sum: an instruction adds 32 products to what is there, each
  // of the 33 cut at 2^-13 of the largest one's power of two. Sums begin anew every 128.
  static double sum_bound(const float* a, int64_t a_step, const float* b, int64_t b_step,
                          int64_t n) {
    double bound = 0, sum = 0;
    for (int64_t first = 0; first < n; first += 32) {
      if (first % kFp8Block == 0) sum = 0;
      double largest = std::abs(sum) * 1.1;
      for (int64_t i = first; i < std::min(n, first + 32); ++i) {
        const double product = static_cast<double>(a[i * a_step]) * b[i * b_step];
        largest = std::max(largest, std::abs(product));
        sum += product;
      }
      bound += 33 * 0x1p-13 * std::max(largest, std::abs(sum));
    }
    return bound;
  }

  static void round_row(std::vector<float>& row) {
    std::vector<uint8_t> codes(row.size());
    std::vector<float> scales(row.size() / kFp8Block + 1);
    act_quant_row(row.data(), static_cast<int64_t>(row.size()), true, codes.data(), scales.data());
    for (size_t i = 0; i < row.size(); ++i) {
      row[i] = e4m3_to_float(codes[i]) * scales[i / kFp8Block];
    }
  }
  std::vector<float> across(std::vector<float> x, int64_t width) const {
    for (int64_t r = 0; r < q_.m; ++r) {
      std::vector<float> row(x.begin() + r * width, x.begin() + (r + 1) * width);
      round_row(row);
      std::copy(row.begin(), row.end(), x.begin() + r * width);
    }
    return x;
  }
  std::vector<float> down(std::vector<float> x, int64_t width) const {
    const std::vector<int64_t> bounds =
        q_.offsets.empty() ? std::vector{int64_t{0}, q_.m} : q_.offsets;
    for (size_t g = 0; g + 1 < bounds.size(); ++g) {
      for (int64_t c = 0; c < width; ++c) {
        std::vector<float> column;
        for (int64_t r = bounds[g]; r < bounds[g + 1]; ++r) {
          column.push_back(x[static_cast<size_t>(r * width + c)]);
        }
        round_row(column);
        for (int64_t r = bounds[g]; r < bounds[g + 1]; ++r) {
          x[static_cast<size_t>(r * width + c)] = column[static_cast<size_t>(r - bounds[g])];
        }
      }
    }
    return x;
  }
  std::vector<float> squares() const {
    const int64_t values = q_.rows * q_.cols, across = (q_.cols + kFp8Block - 1) / kFp8Block;
    std::vector<float> out(w_.size());
    std::vector<uint8_t> codes(static_cast<size_t>(values));
    std::vector<float> scales(static_cast<size_t>((q_.rows / kFp8Block + 1) * across));
    for (int64_t e = 0; e < experts(); ++e) {
      block_quant(w_.data() + e * values, q_.rows, q_.cols, true, codes.data(), scales.data());
      for (int64_t i = 0; i < values; ++i) {
        const int64_t block = i / q_.cols / kFp8Block * across + i % q_.cols / kFp8Block;
        out[static_cast<size_t>(e * values + i)] =
            e4m3_to_float(codes[static_cast<size_t>(i)]) * scales[static_cast<size_t>(block)];
      }
    }
    return out;
  }

  template <typename V>
  V* place(Buffer<V>& to, const std::vector<V>& values) {
    V* p = to.resize(context_, static_cast<int64_t>(values.size()));
    put(context_, p, values.data(), static_cast<int64_t>(values.size() * sizeof(V)));
    return p;
  }
  std::vector<float> read(const Buffer<float>& from) {
    std::vector<float> values(static_cast<size_t>(from.size()));
    get(context_, values.data(), from.data(), static_cast<int64_t>(values.size() * 4));
    return values;
  }

  void run() {
    const ModelConfig config = tiny_config();
    const ParameterTable table(config);
    const MicroBatch batch;
    Objective objective;
    objective.fp8 = true;
    TrainState<float> state;
    StepResult result;
    Pass<float> p{context_, config, table, nullptr, nullptr, batch, objective, state, result, {}};
    std::vector<float> dy = dy_, dw = dw_;
    for (float& v : dy) v *= q_.gradient;
    for (float& v : dw) v *= q_.gradient;
    std::vector<uint16_t> x16, dy16;
    for (const float v : x_) x16.push_back(float_to_bf16(v));
    for (const float v : dy) dy16.push_back(float_to_bf16(v));
    Buffer<float> x_at, dy_at, w_at, y_at, dx_at, dw_at;
    Buffer<uint16_t> x16_at, dy16_at;
    Buffer<int64_t> offsets_at;
    const float *x = bf16_ ? nullptr : place(x_at, x_), *g = bf16_ ? nullptr : place(dy_at, dy);
    const uint16_t* xb = bf16_ ? place(x16_at, x16) : nullptr;
    const uint16_t* gb = bf16_ ? place(dy16_at, dy16) : nullptr;
    const float* w = place(w_at, w_);
    float *to_dw = place(dw_at, dw), *y = y_at.resize(context_, q_.m * q_.rows);
    float* dx = dx_at.resize(context_, q_.m * q_.cols);
    if (q_.offsets.empty()) {
      // The second reads what was rounded for the first.
      Buffer<float> again;
      const Product<float> list[] = {
          {x, q_.cols, q_.m, w, q_.rows, q_.cols, again.resize(context_, q_.m * q_.rows), xb},
          {x, q_.cols, q_.m, w, q_.rows, q_.cols, y, xb}};
      linear_forward<float>(p, list);
      linear_backward<float>(
          p, {g, q_.rows, x, q_.cols, q_.m, w, q_.rows, q_.cols, dx, false, to_dw, gb, xb});
    } else {
      const ExpertRows rows{place(offsets_at, q_.offsets), experts(), q_.m};
      const int64_t stride = q_.rows * q_.cols;
      const ExpertProduct<float> one{x, w, stride, q_.rows, q_.cols, y, xb};
      expert_linear_forward<float>(p, rows, {&one, 1});
      expert_linear_backward<float>(p, rows,
                                    {g, x, w, stride, q_.rows, q_.cols, dx, false, to_dw, gb, xb});
    }
    y_ = read(y_at);
    dx_ = read(dx_at);
    dw_out_ = read(dw_at);
  }

  KernelContext& context_;
  Fp8Problem q_;
  bool tensor_cores_, bf16_;
  std::vector<float> x_, dy_, w_, dw_;  // dy_ and dw_ before the factor
  std::vector<float> y_, dx_, dw_out_;
};

inline std::vector<Fp8Problem> fp8_problems() {
  return {{150, 136, 264, {}, 0x1p-30F},
          {1, 7, 9, {}},
          {129, 64, 72, {}},
          {200, 130, 65, {}, 0x1p-40F},
          {300, 72, 136, {0, 130, 130, 137, 300}, 0x1p-30F},
          {40, 5, 3, {0, 0, 33, 40}}};
}

}  // namespace tamis
