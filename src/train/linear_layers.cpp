#include "train/linear_layers.h"

namespace tamis {
namespace {

// A factor, in T or in bf16.
template <typename T>
struct Factor {
  const T* values = nullptr;
  const uint16_t* bf16 = nullptr;
};

template <typename T>
Factor<T> rounded(Pass<T>& p, Fp8Factor<T>& to, bool bf16, Fp8RoundArgs<T> of) {
  const int64_t n = of.rows * of.width * (of.blocks == Fp8Blocks::kSquare ? of.groups : 1);
  of.y = sized_if(!bf16, p, to.values, n);
  of.y_bf16 = sized_if(bf16, p, to.bf16, n);
  fp8_round<T>(p.kernels, of);
  return {of.y, of.y_bf16};
}

// Rows of activations or gradients; `groups` of their experts count where blocks go down.
template <typename T>
Factor<T> rounded_rows(Pass<T>& p, Fp8Factor<T>& to, bool bf16, Fp8Blocks blocks,
                       const Factor<T>& x, int64_t stride, int64_t rows, int64_t width,
                       const ExpertRows& experts) {
  Fp8RoundArgs<T> of{blocks, x.values, x.bf16, stride, rows, width};
  if (blocks == Fp8Blocks::kDown && experts.offsets != nullptr) {
    of.offsets = experts.offsets;
    of.groups = experts.experts;
  }
  return rounded(p, to, bf16, of);
}

// A gradient across rows, for that of x, and down columns, for that of W.
template <typename T>
Factor<T> rounded_both(Pass<T>& p, bool bf16, const Factor<T>& x, int64_t stride, int64_t rows,
                       int64_t width, const ExpertRows& experts, Factor<T>& down) {
  Workspace<T>& work = p.state.work;
  Fp8RoundArgs<T> of{Fp8Blocks::kBoth, x.values, x.bf16, stride, rows, width};
  if (experts.offsets != nullptr) {
    of.offsets = experts.offsets;
    of.groups = experts.experts;
  }
  of.down = sized_if(!bf16, p, work.fp8_down.values, rows * width);
  of.down_bf16 = sized_if(bf16, p, work.fp8_down.bf16, rows * width);
  down = {of.down, of.down_bf16};
  return rounded(p, work.fp8_first, bf16, of);
}

template <typename T>
Factor<T> rounded_weight(Pass<T>& p, bool bf16, const T* w, int64_t rows, int64_t cols,
                         const ExpertRows& experts, int64_t stride) {
  Fp8RoundArgs<T> of{Fp8Blocks::kSquare, w, nullptr, cols, rows, cols};
  if (experts.offsets != nullptr) {
    of.groups = experts.experts;
    of.group_stride = stride;
  }
  return rounded(p, p.state.work.fp8_second, bf16, of);
}

// The copies of the experts' matrices follow each other: `stride` is the gradients' or theirs.
template <typename T>
void multiply(Pass<T>& p, const MatmulArgs<T>& product, const ExpertRows& experts, GroupedOver over,
              int64_t stride) {
  if (experts.offsets == nullptr) return matmul<T>(p.kernels, product);
  const GroupedMatmulArgs<T> grouped{product, over, stride, experts.offsets, experts.experts};
  grouped_matmuls<T>(p.kernels, {&grouped, 1});
}

// The same on FP8 tensor cores, where those are.
Fp8Groups groups_of(const ExpertRows& experts, int64_t stride) {
  if (experts.offsets == nullptr) return {};
  return {experts.offsets, experts.experts, stride};
}

bool on_tensor_cores(Pass<float>& p, std::span<const Product<float>> list,
                     const ExpertRows& experts, int64_t stride) {
  if (!fp8_products_run(p.kernels)) return false;
  for (size_t i = 0; i < list.size();) {
    const Product<float>& x = list[i];
    std::vector<Fp8Layer> layers;  // those that read the same rows
    for (; i < list.size(); ++i) {
      const Product<float>& own = list[i];
      if (own.x != x.x || own.x_bf16 != x.x_bf16 || own.x_stride != x.x_stride || own.m != x.m ||
          own.cols != x.cols) {
        break;
      }
      layers.push_back({own.w, own.rows, own.y});
    }
    fp8_products_forward(
        p.kernels, {{x.x, x.x_bf16, x.x_stride, x.m, x.cols}, layers, groups_of(experts, stride)});
  }
  return true;
}

bool on_tensor_cores(Pass<float>& p, const ProductBackward<float>& x, const ExpertRows& experts,
                     int64_t stride) {
  if (!fp8_products_run(p.kernels)) return false;
  fp8_products_backward(p.kernels, {{x.dy, x.dy_bf16, x.dy_stride, x.m, x.rows},
                                    {x.x, x.x_bf16, x.x_stride, x.m, x.cols},
                                    x.w,
                                    x.dx,
                                    x.add_dx,
                                    x.dw,
                                    groups_of(experts, stride)});
  return true;
}

template <typename... Args>
bool on_tensor_cores(Pass<double>&, const Args&...) {
  return false;
}

// What linear layers and experts' have in common: without `experts` all rows meet one matrix, else
// x.w is the first one's and `stride` lies from one to the next.
template <typename T>
void fp8_forward(Pass<T>& p, std::span<const Product<T>> list, const ExpertRows& experts,
                 int64_t stride) {
  if (on_tensor_cores(p, list, experts, stride)) return;
  Factor<T> rows;
  const Product<T>* last = nullptr;  // whose rounded rows are there
  bool last_bf16 = false;
  for (const Product<T>& x : list) {
    const bool bf16 = rounds(p, x.m, {x.rows, x.cols});
    const bool same = last != nullptr && last->x == x.x && last->x_bf16 == x.x_bf16 &&
                      last->x_stride == x.x_stride && last->m == x.m && last->cols == x.cols;
    if (!same || bf16 != last_bf16) {
      rows = rounded_rows<T>(p, p.state.work.fp8_first, bf16, Fp8Blocks::kAcross, {x.x, x.x_bf16},
                             x.x_stride, x.m, x.cols, experts);
    }
    last = &x;
    last_bf16 = bf16;
    const Factor<T> w = rounded_weight(p, bf16, x.w, x.rows, x.cols, experts, stride);
    multiply<T>(p,
                {rows.values, x.cols, 1, w.values, 1, x.cols, x.y, x.rows, x.m, x.rows, x.cols,
                 false, rows.bf16, w.bf16},
                experts, GroupedOver::kRows, x.rows * x.cols);
  }
}

template <typename T>
void fp8_backward(Pass<T>& p, const ProductBackward<T>& x, const ExpertRows& experts,
                  int64_t stride) {
  if (on_tensor_cores(p, x, experts, stride)) return;
  Workspace<T>& work = p.state.work;
  const bool bf16 = rounds(p, x.m, {x.rows, x.cols});
  const Factor<T> gradient{x.dy, x.dy_bf16};
  Factor<T> down;
  if (x.dx != nullptr) {
    const Factor<T> dy = rounded_both(p, bf16, gradient, x.dy_stride, x.m, x.rows, experts, down);
    const Factor<T> w = rounded_weight(p, bf16, x.w, x.rows, x.cols, experts, stride);
    multiply<T>(p,
                {dy.values, x.rows, 1, w.values, x.cols, 1, x.dx, x.cols, x.m, x.cols, x.rows,
                 x.add_dx, dy.bf16, w.bf16},
                experts, GroupedOver::kRows, x.rows * x.cols);
  } else {
    down = rounded_rows<T>(p, work.fp8_first, bf16, Fp8Blocks::kDown, gradient, x.dy_stride, x.m,
                           x.rows, experts);
  }
  const Factor<T> in = rounded_rows<T>(p, work.fp8_second, bf16, Fp8Blocks::kDown, {x.x, x.x_bf16},
                                       x.x_stride, x.m, x.cols, experts);
  multiply<T>(p,
              {down.values, 1, x.rows, in.values, x.cols, 1, x.dw, x.cols, x.rows, x.cols, x.m,
               true, down.bf16, in.bf16},
              experts, GroupedOver::kInner, stride);
}

// The list with weights rounded.
template <typename T, typename X>
std::vector<X> with_weights(const Pass<T>& p, std::span<const X> list) {
  std::vector<X> own(list.begin(), list.end());
  for (X& x : own) x.w_bf16 = rounded_weights(p, x.w);
  return own;
}

}  // namespace

template <typename T>
void linear_forward(Pass<T>& p, std::span<const Product<T>> list) {
  if (!p.objective.fp8) return ForwardOps<T>::products(p.kernels, with_weights(p, list));
  fp8_forward(p, list, {}, 0);
}

template <typename T>
void linear_backward(Pass<T>& p, std::span<const ProductBackward<T>> list) {
  if (!p.objective.fp8) return products_backward<T>(p.kernels, with_weights(p, list));
  for (const ProductBackward<T>& x : list) fp8_backward(p, x, {}, 0);
}

template <typename T>
void expert_linear_forward(Pass<T>& p, const ExpertRows& rows,
                           std::span<const ExpertProduct<T>> list) {
  if (!p.objective.fp8) {
    return ForwardOps<T>::expert_products(p.kernels, rows, with_weights(p, list));
  }
  std::vector<Product<T>> products;
  for (const ExpertProduct<T>& x : list) {
    products.push_back({x.x, x.cols, rows.all, x.w, x.rows, x.cols, x.y, x.x_bf16});
  }
  fp8_forward<T>(p, products, rows, list.empty() ? 0 : list[0].w_stride);
}

template <typename T>
void expert_linear_backward(Pass<T>& p, const ExpertRows& rows, const ExpertProductBackward<T>& e) {
  if (p.objective.fp8) {
    return fp8_backward<T>(p,
                           {e.dy, e.rows, e.x, e.cols, rows.all, e.w, e.rows, e.cols, e.dx,
                            e.add_dx, e.dw, e.dy_bf16, e.x_bf16},
                           rows, e.w_stride);
  }
  const GroupedMatmulArgs<T> list[] = {
      {{e.dy, e.rows, 1, e.w, e.cols, 1, e.dx, e.cols, rows.all, e.cols, e.rows, e.add_dx,
        e.dy_bf16, rounded_weights(p, e.w)},
       GroupedOver::kRows,
       e.w_stride,
       rows.offsets,
       rows.experts},
      {{e.dy, 1, e.rows, e.x, e.cols, 1, e.dw, e.cols, e.rows, e.cols, rows.all, true, e.dy_bf16,
        e.x_bf16},
       GroupedOver::kInner,
       e.w_stride,
       rows.offsets,
       rows.experts}};
  grouped_matmuls<T>(p.kernels, list);
}

template void linear_forward(Pass<float>&, std::span<const Product<float>>);
template void linear_forward(Pass<double>&, std::span<const Product<double>>);
template void linear_backward(Pass<float>&, std::span<const ProductBackward<float>>);
template void linear_backward(Pass<double>&, std::span<const ProductBackward<double>>);
template void expert_linear_forward(Pass<float>&, const ExpertRows&,
                                    std::span<const ExpertProduct<float>>);
template void expert_linear_forward(Pass<double>&, const ExpertRows&,
                                    std::span<const ExpertProduct<double>>);
template void expert_linear_backward(Pass<float>&, const ExpertRows&,
                                     const ExpertProductBackward<float>&);
template void expert_linear_backward(Pass<double>&, const ExpertRows&,
                                     const ExpertProductBackward<double>&);

}  // namespace tamis
