// Products with weights: linear, linear_fp8, linear_int8, per_head_linear.
#include "bench/workloads.h"
#include "kernels/linear/linear.h"
#include "kernels/linear/linear_int8.h"
#include "kernels/per_head_linear/per_head_linear.h"
#include "kernels/workloads/operands.h"

namespace tamis {
namespace {

constexpr DType kFormats[] = {DType::kBF16, DType::kF8E4M3, DType::kI8, DType::kI4};

struct LinearOperands {
  LinearOperands(DType dtype, const bench::LinearShape& s, int64_t m)
      : weight(random_weight(dtype, s.rows, s.cols)),
        x(noise(m * s.cols, 1)),
        y(static_cast<size_t>(m * s.rows)) {
    args = {x.data(), s.cols, m, weight.w, y.data(), s.rows};
  }
  OwnedWeight weight;
  std::vector<float> x, y;
  LinearArgs args;
};

using RunLinear = void (*)(KernelContext& context, const LinearArgs& args);

Workload linear_workload(const bench::LinearShape& s, DType dtype, int64_t m, const char* op,
                         RunLinear run) {
  Workload w;
  w.op = op;
  w.shape = std::string(s.name) + "." + std::string(dtype_name(dtype)) + ".m" + std::to_string(m);
  w.bytes = weight_bytes(dtype, s.rows, s.cols) + static_cast<double>(4 * m * (s.cols + s.rows));
  w.flops = 2.0 * static_cast<double>(m * s.rows * s.cols);
  w.prepare = [s, dtype, m, run] {
    const auto o = std::make_shared<LinearOperands>(dtype, s, m);
    return [o, run](KernelContext& c) { run(c, o->args); };
  };
  return w;
}

void run_linear_fp8(KernelContext& context, const LinearArgs& args) {
  linear_fp8(context, {args, true});
}

void run_linear_int8(KernelContext& context, const LinearArgs& args) {
  linears_int8(context, {&args, 1});
}

struct PerHeadOperands {
  PerHeadOperands(const bench::PerHeadShape& s, bool transposed)
      : weight(random_weight(DType::kBF16, s.heads * 2 * s.rows, s.cols)),
        x(noise(s.tokens * s.heads * (transposed ? s.rows : s.cols), 1)),
        y(static_cast<size_t>(s.tokens * s.heads * (transposed ? s.cols : s.rows))) {
    const int64_t in = transposed ? s.rows : s.cols, out = transposed ? s.cols : s.rows;
    args.x = x.data();
    args.x_token_stride = s.heads * in;
    args.x_head_stride = in;
    args.num_tokens = s.tokens;
    args.num_heads = s.heads;
    args.w = weight.w;
    args.head_rows = 2 * s.rows;
    args.row_offset = transposed ? 0 : s.rows;
    args.rows = s.rows;
    args.transposed = transposed;
    args.y = y.data();
    args.y_token_stride = s.heads * out;
    args.y_head_stride = out;
  }
  OwnedWeight weight;
  std::vector<float> x, y;
  PerHeadLinearArgs args;
};

Workload per_head_workload(const bench::PerHeadShape& s, bool transposed) {
  Workload w;
  w.op = "per_head_linear";
  w.shape = std::string(s.name) + (transposed ? ".w_uk" : ".w_uv");
  w.bytes = weight_bytes(DType::kBF16, s.heads * s.rows, s.cols) +
            static_cast<double>(4 * s.tokens * s.heads * (s.rows + s.cols));
  w.flops = 2.0 * static_cast<double>(s.tokens * s.heads * s.rows * s.cols);
  w.prepare = [s, transposed] {
    const auto o = std::make_shared<PerHeadOperands>(s, transposed);
    return [o](KernelContext& c) { per_head_linear(c, o->args); };
  };
  return w;
}

}  // namespace

void add_linear_workloads(std::vector<Workload>& list) {
  for (const bench::LinearShape& s : bench::kLinearShapes) {
    for (const DType dtype : kFormats) {
      for (const int64_t m : bench::kLinearRows) {
        list.push_back(linear_workload(s, dtype, m, "linear", linear));
        if (dtype == DType::kF8E4M3) {
          list.push_back(linear_workload(s, dtype, m, "linear_fp8", run_linear_fp8));
        }
        if (dtype == DType::kI8 || dtype == DType::kI4) {
          list.push_back(linear_workload(s, dtype, m, "linear_int8", run_linear_int8));
        }
      }
    }
  }
  for (const bench::PerHeadShape& s : bench::kPerHeadShapes) {
    list.push_back(per_head_workload(s, true));
    list.push_back(per_head_workload(s, false));
  }
}

}  // namespace tamis
