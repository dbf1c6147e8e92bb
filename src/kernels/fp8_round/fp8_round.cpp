#include "kernels/fp8_round/fp8_round.h"

#include <algorithm>
#include <cmath>

#include "kernels/fp8_round/fp8_round_impl.h"
#include "kernels/weight.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

float scale_of(float largest, bool weight) {
  if (weight) return round_up_to_power_of_two(std::max(largest, kLeastWeight) / kFp8Largest);
  return std::max(round_up_to_power_of_two(largest * (1.0F / kFp8Largest)), kLeastFp8Scale);
}

// A block of `rows` rows of `width` values, each part of a longer row.
struct Block {
  int64_t x = 0, x_stride = 0, y = 0, y_stride = 0, rows = 0, width = 0;
};

template <typename T>
float value(const Fp8RoundArgs<T>& a, int64_t at) {
  return a.x_bf16 != nullptr ? bf16_to_float(a.x_bf16[at]) : static_cast<float>(a.x[at]);
}

template <typename T>
void round_block(const Fp8RoundArgs<T>& a, const Block& b) {
  float largest = 0;
  for (int64_t r = 0; r < b.rows; ++r) {
    for (int64_t c = 0; c < b.width; ++c) {
      largest = std::max(largest, std::fabs(value(a, b.x + r * b.x_stride + c)));
    }
  }
  const float scale = scale_of(largest, a.blocks == Fp8Blocks::kSquare);
  for (int64_t r = 0; r < b.rows; ++r) {
    for (int64_t c = 0; c < b.width; ++c) {
      const float x = value(a, b.x + r * b.x_stride + c);
      const float y = e4m3_to_float(float_to_e4m3(x / scale)) * scale;
      const int64_t to = b.y + r * b.y_stride + c;
      if (a.y != nullptr) {
        a.y[to] = y;
      } else {
        a.y_bf16[to] = float_to_bf16(y);
      }
    }
  }
}

// Rows [first, last) in blocks of at most `rows` x `width`.
template <typename T>
void round_rows_in_blocks(const Fp8RoundArgs<T>& a, int64_t x, int64_t y, int64_t first,
                          int64_t last, int64_t rows, int64_t width) {
  for (int64_t r = first; r < last; r += rows) {
    for (int64_t c = 0; c < a.width; c += width) {
      round_block(a, {x + r * a.x_stride + c, a.x_stride, y + r * a.width + c, a.width,
                      std::min(rows, last - r), std::min(width, a.width - c)});
    }
  }
}

template <typename T>
void reference(KernelContext& context, const Fp8RoundArgs<T>& a) {
  if (a.blocks == Fp8Blocks::kBoth) {
    Fp8RoundArgs<T> one = a;
    one.blocks = Fp8Blocks::kAcross;
    reference(context, one);
    one.blocks = Fp8Blocks::kDown;
    one.y = a.down;
    one.y_bf16 = a.down_bf16;
    return reference(context, one);
  }
  if (a.blocks == Fp8Blocks::kAcross) {
    return context.pool().run(
        a.rows, [&](int64_t r, int) { round_rows_in_blocks(a, 0, 0, r, r + 1, 1, kFp8Block); });
  }
  context.pool().run(a.groups, [&](int64_t g, int) {
    if (a.blocks == Fp8Blocks::kSquare) {
      round_rows_in_blocks(a, g * a.group_stride, g * a.rows * a.width, 0, a.rows, kFp8Block,
                           kFp8Block);
    } else {
      const int64_t first = a.offsets == nullptr ? 0 : a.offsets[g];
      const int64_t last = a.offsets == nullptr ? a.rows : a.offsets[g + 1];
      round_rows_in_blocks(a, 0, 0, first, last, kFp8Block, 1);
    }
  });
}

template <typename T>
constexpr Implementation<Fp8RoundArgs<T>> kList[] = {
    {"reference", [](const Fp8RoundArgs<T>&) { return true; }, reference<T>},
};
template <>
constexpr Implementation<Fp8RoundArgs<float>> kList<float>[] = {
    {"cuda", [](const Fp8RoundArgs<float>&) { return true; }, fp8_round_cuda},
    {"reference", [](const Fp8RoundArgs<float>&) { return true; }, reference<float>},
};

}  // namespace

template <typename T>
void fp8_round(KernelContext& context, const Fp8RoundArgs<T>& args) {
  dispatch<Fp8RoundArgs<T>>(context, "fp8_round", kList<T>, args);
}

template void fp8_round(KernelContext&, const Fp8RoundArgs<float>&);
template void fp8_round(KernelContext&, const Fp8RoundArgs<double>&);

}  // namespace tamis
