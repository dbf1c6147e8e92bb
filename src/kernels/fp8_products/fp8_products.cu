// Where codes and scales lie in scratch memory, and which products are made of them.
#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/fp8_products/fp8_products_impl.h"
#include "kernels/weight.h"

namespace tamis {

#ifdef TAMIS_SM90

namespace {

using fp8::Codes;
using fp8::Product;

constexpr int kCodesSlot = 2;  // of device_scratch
constexpr int64_t kAlignment = 256;

int64_t tiles(int64_t n) { return (n + kFp8Block - 1) / kFp8Block; }

// Parts of one allocation, placed before it is made.
class Layout {
 public:
  // Lines of `blocks` blocks, with a scale for each block of each line.
  void lines(Codes& to, int64_t lines, int64_t blocks) { add(to, lines, blocks, 0, 1); }
  // Of a matrix [lines, inner] for each group, with a scale for each square.
  void squares(Codes& to, int64_t lines, int64_t inner, int64_t groups) {
    add(to, lines, tiles(inner), 7, groups);
  }
  // Puts them into the scratch memory.
  void place(KernelContext& context) {
    auto* memory = static_cast<uint8_t*>(device_scratch(context, kCodesSlot, bytes_));
    for (size_t i = 0; i < count_; ++i) {
      list_[i]->codes = memory + codes_at_[i];
      list_[i]->scales = reinterpret_cast<float*>(memory + scales_at_[i]);
    }
  }

 private:
  static constexpr size_t kMost = 4;

  void add(Codes& to, int64_t lines, int64_t blocks, int shift, int64_t groups) {
    to.pitch = blocks * kFp8Block;
    to.scale_shift = shift;
    to.scale_pitch = shift == 0 ? lines : tiles(lines);
    to.group_codes = lines * to.pitch;
    to.group_scales = blocks * to.scale_pitch;
    list_[count_] = &to;
    codes_at_[count_] = take(groups * to.group_codes);
    scales_at_[count_] = take(groups * to.group_scales * static_cast<int64_t>(sizeof(float)));
    ++count_;
  }
  int64_t take(int64_t bytes) {
    const int64_t at = bytes_;
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  }

  Codes* list_[kMost] = {};
  int64_t codes_at_[kMost] = {}, scales_at_[kMost] = {}, bytes_ = 0;
  size_t count_ = 0;
};

// Over the rows of the groups, or of one matrix.
Product over_rows(const Codes& a, const Codes& b, float* c, int64_t n, int64_t inner, bool add,
                  int64_t rows, const Fp8Groups& groups) {
  Product p{a, b, c, n};
  p.m = p.rows = rows;
  p.n = n;
  p.blocks = tiles(inner);
  p.add = add;
  p.offsets = groups.offsets;
  p.groups = groups.groups;
  return p;
}

}  // namespace

bool has_fp8_products_cuda() { return true; }

void fp8_products_forward_cuda(KernelContext& context, const Fp8ForwardArgs& args) {
  const Fp8Rows& x = args.x;
  int64_t outputs = 0;
  for (const Fp8Layer& layer : args.layers) outputs = std::max(outputs, layer.outputs);
  if (x.rows == 0 || x.width == 0 || outputs == 0) return;
  Codes in, w;
  Layout layout;
  layout.lines(in, x.rows, tiles(x.width));
  layout.squares(w, outputs, x.width, args.groups.groups);
  layout.place(context);
  fp8::codes_across(context, x, in);
  for (const Fp8Layer& layer : args.layers) {
    // The codes of one layer's weight after the other's, in the same place.
    Codes own = w;
    own.scale_pitch = tiles(layer.outputs);
    own.group_codes = layer.outputs * own.pitch;
    own.group_scales = tiles(x.width) * own.scale_pitch;
    fp8::codes_of_weight(context, layer.w, layer.outputs, x.width, args.groups, false, own);
    fp8::multiply(context,
                  over_rows(in, own, layer.y, layer.outputs, x.width, false, x.rows, args.groups));
  }
}

void fp8_products_backward_cuda(KernelContext& context, const Fp8BackwardArgs& args) {
  const Fp8Rows &dy = args.dy, &x = args.x;
  if (x.rows == 0 || x.width == 0 || dy.width == 0) return;
  const bool grouped = args.groups.offsets != nullptr;
  // Every group may end with part of a block.
  const int64_t blocks = tiles(x.rows) + (grouped ? args.groups.groups : 0);
  Codes across, dy_down, second_w, second_x;
  Layout layout;
  layout.lines(dy_down, dy.width, blocks);
  layout.lines(second_x, x.width, blocks);
  if (args.dx != nullptr) {
    layout.lines(across, dy.rows, tiles(dy.width));
    layout.squares(second_w, x.width, dy.width, args.groups.groups);
  }
  layout.place(context);
  fp8::codes_down(context, dy, args.groups, across, dy_down);
  if (args.dx != nullptr) {
    fp8::codes_of_weight(context, args.w, dy.width, x.width, args.groups, true, second_w);
    fp8::multiply(context, over_rows(across, second_w, args.dx, x.width, dy.width, args.add_dx,
                                     x.rows, args.groups));
  }
  fp8::codes_down(context, x, args.groups, {}, second_x);
  Product p{dy_down, second_x, args.dw, x.width, args.groups.stride};
  p.m = dy.width;
  p.n = x.width;
  p.blocks = blocks;
  p.add = true;
  p.offsets = args.groups.offsets;
  p.groups = args.groups.groups;
  p.rows = x.rows;
  p.over_inner = true;
  fp8::multiply(context, p);
}

#else

bool has_fp8_products_cuda() { return false; }
void fp8_products_forward_cuda(KernelContext&, const Fp8ForwardArgs&) {
  throw UsageError("fp8_products: this build has no code for Hopper");
}
void fp8_products_backward_cuda(KernelContext&, const Fp8BackwardArgs&) {
  throw UsageError("fp8_products: this build has no code for Hopper");
}

#endif

}  // namespace tamis
