#include "checkpoint/quantise.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "kernels/quantize_fp8/quantize_fp8.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

constexpr int64_t kChunk = 1024;  // columns that are worked on at a time, a multiple of kIntGroup
constexpr int64_t kStripBytes = int64_t{8} << 20;
constexpr int64_t kTaskRows = 16;

// The smallest bf16 that is not below x >= 0.
uint16_t round_up_to_bf16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((u >> 16) + ((u & 0xFFFFu) != 0 ? 1 : 0));
}

// Nearest integer, ties to even, of |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
float round_small(float x) {
  constexpr float kMagic = 12582912.0f;
  return (x + kMagic) - kMagic;
}

constexpr uint16_t kBf16One = 0x3F80;

// Quantises n <= 32 values by `scale`; returns the sum of squared errors.
float try_scale(const float* w, int64_t n, float scale, float* q) {
  float squares = 0;
  for (int64_t i = 0; i < n; ++i) {
    q[i] = round_small(w[i] / scale);
    const float error = w[i] - q[i] * scale;
    squares += error * error;
  }
  return squares;
}

// Rounding the ratio to float before rounding it up could leave it below the true one.
uint16_t scale_for(float amax, float steps) {
  uint16_t scale = round_up_to_bf16(amax / steps);
  while (static_cast<double>(bf16_to_float(scale)) * steps < amax) ++scale;
  return scale;
}

uint16_t int4_group(const float* w, int64_t n, float* q) {
  float below = 0, above = 0;  // never -0, whose bits would pass for a large scale
  for (int64_t i = 0; i < n; ++i) {
    below = std::max(below, -w[i]);
    above = std::max(above, w[i]);
  }
  const float amax = std::max(above, below);
  if (amax == 0) {
    std::fill_n(q, n, 0.0f);
    return kBf16One;
  }
  const uint16_t even = scale_for(amax, 7);
  const uint16_t uneven = std::max(scale_for(above, 7), scale_for(below, 8));
  std::array<float, kIntGroup> other;
  const float even_squares = try_scale(w, n, bf16_to_float(even), q);
  if (uneven == even || try_scale(w, n, bf16_to_float(uneven), other.data()) >= even_squares) {
    return even;
  }
  std::copy_n(other.begin(), n, q);
  return uneven;
}

bool all_finite(const float* x, int64_t n) {
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    finite &= (std::bit_cast<uint32_t>(x[i]) & 0x7F800000u) != 0x7F800000u;
  }
  return finite;
}

// One conversion of one weight. Tasks write to their own rows of the strip only.
class Requantiser {
 public:
  Requantiser(const StoredWeight& stored, const RequantiseTarget& target)
      : stored_(stored),
        w_(stored.view()),
        format_(target.format),
        ue8m0_(target.power_of_two_scales),
        row_bytes_(format_ == NumberFormat::kBf16   ? 2 * w_.cols
                   : format_ == NumberFormat::kInt4 ? (w_.cols + 1) / 2
                                                    : w_.cols) {
    const int64_t groups = (w_.cols + kIntGroup - 1) / kIntGroup;
    const int64_t block_rows = (w_.rows + kFp8Block - 1) / kFp8Block;
    block_cols_ = (w_.cols + kFp8Block - 1) / kFp8Block;
    if (format_ == NumberFormat::kFp8) {
      fp8_scales_.resize(static_cast<size_t>(block_rows * block_cols_));
    } else if (format_ != NumberFormat::kBf16) {
      int_scales_.resize(static_cast<size_t>(w_.rows * groups));
    }
  }

  RoundingError run(ThreadPool& pool, FunctionRef<void(std::span<const std::byte>)> sink) {
    const int64_t blocks =
        std::max<int64_t>(1, kStripBytes / std::max<int64_t>(1, row_bytes_)) / kFp8Block;
    const int64_t strip_rows = std::max<int64_t>(1, blocks) * kFp8Block;
    const int64_t task_rows = format_ == NumberFormat::kFp8 ? kFp8Block : kTaskRows;
    RoundingError total;
    total.tensors = 1;
    for (int64_t begin = 0; begin < w_.rows; begin += strip_rows) {
      const int64_t rows = std::min(strip_rows, w_.rows - begin);
      strip_.resize(static_cast<size_t>(rows * row_bytes_));
      const int64_t tasks = (rows + task_rows - 1) / task_rows;
      std::vector<RoundingError> errors(static_cast<size_t>(tasks));
      pool.run(tasks, [&](int64_t task, int) {
        const int64_t first = begin + task * task_rows;
        const int64_t count = std::min(task_rows, begin + rows - first);
        std::byte* out = strip_.data() + task * task_rows * row_bytes_;
        errors[static_cast<size_t>(task)] = format_ == NumberFormat::kFp8
                                                ? block_task(first, count, out)
                                                : row_task(first, count, out);
      });
      // In the order of the rows: the sum does not depend on the number of threads.
      for (const RoundingError& error : errors) total.add(error);
      sink(strip_);
    }
    sink(std::as_bytes(std::span(fp8_scales_)));
    sink(std::as_bytes(std::span(int_scales_)));
    return total;
  }

 private:
  void read(int64_t row, int64_t begin, int64_t count, float* out) const {
    dequantize_row(w_, row, begin, count, out);
    if (format_ == NumberFormat::kBf16 || all_finite(out, count)) return;
    const float* bad = std::find_if(out, out + count, [](float x) { return !std::isfinite(x); });
    throw InputError("tensor \"" + printable(stored_.name()) + "\": element [" +
                     std::to_string(row) + "," + std::to_string(begin + (bad - out)) +
                     "] is not finite, so it cannot be quantised");
  }

  static void count_error(const float* w, const float* stored, int64_t n, RoundingError* error) {
    double squares = 0, weights = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double d = static_cast<double>(w[i]) - static_cast<double>(stored[i]);
      squares += d * d;
      weights += static_cast<double>(w[i]) * static_cast<double>(w[i]);
    }
    error->elements += n;
    error->error_squares += squares;
    error->weight_squares += weights;
  }

  RoundingError block_task(int64_t first, int64_t rows, std::byte* out) {
    RoundingError error;
    std::vector<float> tile(kFp8Block * kFp8Block), back(kFp8Block);
    std::vector<uint8_t> q(kFp8Block * kFp8Block);
    for (int64_t c = 0; c < w_.cols; c += kFp8Block) {
      const int64_t n = std::min(kFp8Block, w_.cols - c);
      for (int64_t r = 0; r < rows; ++r) read(first + r, c, n, tile.data() + r * n);
      float& scale =
          fp8_scales_[static_cast<size_t>(first / kFp8Block * block_cols_ + c / kFp8Block)];
      block_quant(tile.data(), rows, n, ue8m0_, q.data(), &scale);
      for (int64_t r = 0; r < rows; ++r) {
        const uint8_t* row = q.data() + r * n;
        std::memcpy(out + r * row_bytes_ + c, row, static_cast<size_t>(n));
        for (int64_t i = 0; i < n; ++i)
          back[static_cast<size_t>(i)] = e4m3_to_float(row[i]) * scale;
        count_error(tile.data() + r * n, back.data(), n, &error);
      }
    }
    return error;
  }

  RoundingError row_task(int64_t first, int64_t rows, std::byte* out) {
    RoundingError error;
    std::array<float, kChunk> w, back;
    for (int64_t r = first; r < first + rows; ++r, out += row_bytes_) {
      for (int64_t c = 0; c < w_.cols; c += kChunk) {
        const int64_t n = std::min(kChunk, w_.cols - c);
        read(r, c, n, w.data());
        encode(w.data(), r, c, n, out, back.data());
        count_error(w.data(), back.data(), n, &error);
      }
    }
    return error;
  }

  // Columns c .. c+n of one row into `out`, the row; `back` is what a reader will see.
  void encode(const float* w, int64_t r, int64_t c, int64_t n, std::byte* out, float* back) {
    if (format_ == NumberFormat::kBf16) {
      for (int64_t i = 0; i < n; ++i) {
        const uint16_t bits = float_to_bf16(w[i]);
        std::memcpy(out + 2 * (c + i), &bits, 2);
        back[i] = bf16_to_float(bits);
      }
      return;
    }
    const int64_t groups = (w_.cols + kIntGroup - 1) / kIntGroup;
    uint16_t* scales = int_scales_.data() + r * groups + c / kIntGroup;
    Weight view{out, DType::kI8, 1, w_.cols, row_bytes_};
    if (format_ == NumberFormat::kInt8) {
      int8_quant_row(w, n, reinterpret_cast<int8_t*>(out + c), scales);
    } else {
      view.dtype = DType::kI4;
      int4_quant_row(w, n, reinterpret_cast<uint8_t*>(out + c / 2), scales);
    }
    view.scale_dtype = DType::kBF16;
    view.scales = reinterpret_cast<const std::byte*>(scales - c / kIntGroup);
    dequantize_row(view, 0, c, n, back);
  }

  const StoredWeight& stored_;
  const Weight& w_;
  const NumberFormat format_;
  const bool ue8m0_;
  const int64_t row_bytes_;
  int64_t block_cols_ = 0;
  std::vector<std::byte> strip_;
  std::vector<float> fp8_scales_;
  std::vector<uint16_t> int_scales_;
};

[[noreturn]] void fail(const std::string& name, const std::string& what) {
  throw InputError("tensor \"" + printable(name) + "\": " + what);
}

}  // namespace

void int8_quant_row(const float* w, int64_t n, int8_t* q, uint16_t* scales) {
  std::array<float, kIntGroup> rounded;
  for (int64_t begin = 0; begin < n; begin += kIntGroup) {
    const int64_t count = std::min(kIntGroup, n - begin);
    float amax = 0;
    for (int64_t i = 0; i < count; ++i) amax = std::max(amax, std::fabs(w[begin + i]));
    const uint16_t scale = amax > 0 ? scale_for(amax, 127) : kBf16One;
    try_scale(w + begin, count, bf16_to_float(scale), rounded.data());
    for (int64_t i = 0; i < count; ++i) {
      q[begin + i] = static_cast<int8_t>(rounded[static_cast<size_t>(i)]);
    }
    scales[begin / kIntGroup] = scale;
  }
}

void int4_quant_row(const float* w, int64_t n, uint8_t* q, uint16_t* scales) {
  std::array<float, kIntGroup> rounded;
  for (int64_t begin = 0; begin < n; begin += kIntGroup) {
    const int64_t count = std::min(kIntGroup, n - begin);
    rounded.fill(0);
    scales[begin / kIntGroup] = int4_group(w + begin, count, rounded.data());
    for (int64_t i = 0; i < count; i += 2) {
      const int low = static_cast<int>(rounded[static_cast<size_t>(i)]);
      const int high = static_cast<int>(rounded[static_cast<size_t>(i + 1)]);
      q[(begin + i) / 2] = static_cast<uint8_t>((low & 15) | (high & 15) << 4);
    }
  }
}

NumberFormat stored_format(const Checkpoint& checkpoint, const TensorInfo& weight) {
  if (weight.dtype == DType::kF8E4M3) return NumberFormat::kFp8;
  if (checkpoint.find(weight.name + "_scale") == nullptr) return NumberFormat::kKeep;
  if (weight.dtype == DType::kI8) return NumberFormat::kInt8;
  return weight.dtype == DType::kU8 ? NumberFormat::kInt4 : NumberFormat::kKeep;
}

StoredWeight::StoredWeight(const Checkpoint& checkpoint, const std::string& name) : name_(name) {
  const Tensor tensor = checkpoint.tensor(name);
  if (tensor.shape.rank() != 2) fail(name, "shape " + tensor.shape.to_string() + ", want 2 dims");
  view_.data = tensor.data;
  view_.dtype = tensor.dtype;
  view_.rows = tensor.shape[0];
  view_.cols = tensor.shape[1];
  view_.row_bytes = dtype_bytes(tensor.dtype, view_.cols);
  const bool plain =
      tensor.dtype == DType::kF32 || tensor.dtype == DType::kF16 || tensor.dtype == DType::kBF16;
  if (tensor.dtype == DType::kF8E4M3) {
    attach_fp8_scales(checkpoint.tensor(name + "_scale_inv"));
  } else if (tensor.dtype == DType::kI8 || tensor.dtype == DType::kU8) {
    if (tensor.dtype == DType::kU8) {
      view_.dtype = DType::kI4;
      view_.cols *= 2;
    }
    attach_int_scales(checkpoint);
  } else if (!plain) {
    fail(name, "weights of " + std::string(dtype_name(tensor.dtype)) + " cannot be converted");
  }
}

void StoredWeight::attach_fp8_scales(const Tensor& scale) {
  check_scale_values(name_ + "_scale_inv", scale);
  view_.scales = scale.data;
  view_.scale_stride = scale.shape[1];
  if (scale.dtype == DType::kF32) return;
  for (int64_t i = 0; i < scale.shape.elements(); ++i) scales_.push_back(tensor_element(scale, i));
  view_.scales = reinterpret_cast<const std::byte*>(scales_.data());
}

void StoredWeight::attach_int_scales(const Checkpoint& checkpoint) {
  const Tensor scale = checkpoint.tensor(name_ + "_scale");
  const Shape want{view_.rows, (view_.cols + kIntGroup - 1) / kIntGroup};
  if (scale.dtype != DType::kBF16 || !(scale.shape == want)) {
    fail(name_ + "_scale", std::string(dtype_name(scale.dtype)) + " " + scale.shape.to_string() +
                               ", want BF16 " + want.to_string());
  }
  view_.scales = scale.data;
  view_.scale_dtype = DType::kBF16;
  view_.scale_stride = want[1];
}

RoundingError requantise(const StoredWeight& weight, const RequantiseTarget& target,
                         ThreadPool& pool, FunctionRef<void(std::span<const std::byte>)> sink) {
  return Requantiser(weight, target).run(pool, sink);
}

}  // namespace tamis
