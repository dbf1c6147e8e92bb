#include <algorithm>

#include "bench/workloads.h"
#include "kernels/cuda/bench_operands.h"
#include "kernels/cuda/bench_training.h"
#include "kernels/grouped_linear/grouped_linear.h"
#include "kernels/indexer_select/indexer_select.h"
#include "kernels/mla_sparse/mla_sparse.h"
#include "kernels/topk/topk.h"
#include "kernels/workloads/cuda_workloads.h"

namespace tamis {
namespace {

constexpr int64_t kLatent = 512, kRope = 64, kIndexDim = 128;

double as_double(int64_t n) { return static_cast<double>(n); }

// Positions that a sequence's last `tokens` of `context` see, added up.
double visible(int64_t tokens, int64_t context) {
  return as_double(tokens) * (as_double(context) - as_double(tokens - 1) / 2);
}

// A call on sets of operands of type Set, each made by Set(context, shape, seed).
template <typename Set, typename Shape, typename Call>
auto prepare_sets(const Shape& shape, Call call) {
  return [shape, call](KernelContext& context, int sets) {
    std::vector<std::shared_ptr<Set>> all;
    for (int i = 0; i < sets; ++i) {
      all.push_back(std::make_shared<Set>(context, shape, static_cast<uint32_t>(1000 * i)));
    }
    return [all, call](KernelContext& c, int set) {
      call(c, *all[static_cast<size_t>(set) % all.size()]);
    };
  };
}

struct SparseSet {
  SparseSet(KernelContext& c, const bench::GpuSparseShape& s, uint32_t seed)
      : kv(c, {kLatent, kRope, 0, format(s), format(s)}, s.sequences, s.context, s.tokens, seed),
        q(normal_floats(c, kv.count * s.heads * (kLatent + kRope), seed + 1)),
        out(c, kv.count * s.heads * kLatent),
        indices(random_selection(c, kv.count, s.selected, kv.position.data(), seed + 2)) {
    args.q_latent = q.data();
    args.q_pe = q.data() + kv.count * s.heads * kLatent;
    args.q_pe_token_stride = s.heads * kRope;
    args.q_pe_head_stride = kRope;
    args.heads = s.heads;
    args.kv = kv.kv;
    args.tokens = kv.map();
    args.indices = indices.data();
    args.k = s.selected;
    args.softmax_scale = 0.135F;
    args.round_bf16 = true;
    args.out = out.data();
  }
  static KvFormat format(const bench::GpuSparseShape& s) {
    return s.fp8 ? KvFormat::kFP8 : KvFormat::kBF16;
  }
  DeviceKv kv;
  DeviceArray<float> q, out;
  DeviceArray<int32_t> indices;
  MlaSparseArgs args;
};

CudaWorkload sparse_workload(const bench::GpuSparseShape& s) {
  CudaWorkload w;
  w.op = "mla_sparse";
  w.shape = s.name;
  const int64_t tokens = s.sequences * s.tokens;
  const double entries = as_double(tokens * s.selected);
  const double rows = std::min(entries, as_double(s.sequences * s.context));
  const KvLayout layout{kLatent, kRope, 0, SparseSet::format(s), SparseSet::format(s)};
  w.bytes = rows * as_double(layout.latent_row_bytes()) + 4 * entries +
            as_double(4 * tokens * s.heads * (2 * kLatent + kRope));
  w.flops = 2.0 * entries * as_double(s.heads * (2 * kLatent + kRope));
  w.prepare = prepare_sets<SparseSet>(
      s, [](KernelContext& c, const SparseSet& set) { mla_sparse(c, set.args); });
  return w;
}

struct IndexSet {
  IndexSet(KernelContext& c, const bench::GpuIndexShape& s, uint32_t seed)
      : kv(c, {16, 16, kIndexDim, KvFormat::kBF16, KvFormat::kFP8}, s.sequences, s.context,
           s.tokens, seed),
        q(normal_floats(c, kv.count * s.heads * kIndexDim, seed + 1)),
        w(normal_floats(c, kv.count * s.heads, seed + 2)),
        logits(c, s.selected > 0 ? 4 : kv.count * s.context),
        indices(c, std::max<int64_t>(1, kv.count * s.selected)),
        nan(c, kv.count) {
    const IndexerArgs in{q.data(), w.data(), s.heads, kv.kv, kv.map(), true};
    scores = {in, logits.data(), s.context};
    select = {in, s.selected, indices.data(), nan.data()};
  }
  DeviceKv kv;
  DeviceArray<float> q, w, logits;
  DeviceArray<int32_t> indices;
  DeviceArray<uint8_t> nan;
  IndexerLogitsArgs scores;
  IndexerSelectArgs select;
};

CudaWorkload index_workload(const bench::GpuIndexShape& s) {
  CudaWorkload w;
  w.op = s.selected > 0 ? "indexer_select" : "indexer_logits";
  w.shape = s.name;
  const double pairs = as_double(s.sequences) * visible(s.tokens, s.context);
  const int64_t tokens = s.sequences * s.tokens;
  w.bytes = as_double(s.sequences * s.context * (kIndexDim + 4)) +
            as_double(4 * tokens * s.heads * (kIndexDim + 1)) +
            (s.selected > 0 ? as_double(4 * tokens * s.selected) : 4 * pairs);
  w.flops = 2.0 * pairs * as_double(s.heads * (kIndexDim + 1));
  w.prepare = prepare_sets<IndexSet>(s, [](KernelContext& c, const IndexSet& set) {
    set.select.k > 0 ? indexer_select(c, set.select) : indexer_logits(c, set.scores);
  });
  return w;
}

struct TopkSet {
  TopkSet(KernelContext& c, const bench::GpuTopkShape& s, uint32_t seed)
      : scores(s.narrow ? narrow_floats(c, s.rows * s.length, seed)
                        : normal_floats(c, s.rows * s.length, seed)),
        lengths(c,
                std::vector<int32_t>(static_cast<size_t>(s.rows), static_cast<int32_t>(s.length))),
        indices(c, s.rows * s.selected),
        nan(c, s.rows),
        args{scores.data(), s.length,       s.rows,    lengths.data(),
             s.selected,    indices.data(), nan.data()} {}
  DeviceArray<float> scores;
  DeviceArray<int32_t> lengths, indices;
  DeviceArray<uint8_t> nan;
  TopkArgs args;
};

CudaWorkload topk_workload(const bench::GpuTopkShape& s) {
  CudaWorkload w;
  w.op = "topk";
  w.shape = s.name;
  w.bytes = as_double(4 * s.rows * (s.length + s.selected));
  w.prepare =
      prepare_sets<TopkSet>(s, [](KernelContext& c, const TopkSet& set) { topk(c, set.args); });
  return w;
}

struct LinearCase {
  bench::LinearShape shape;
  int64_t m;
  DType dtype;
};

struct LinearSet {
  LinearSet(KernelContext& c, const LinearCase& s, uint32_t seed)
      : weight(c, s.dtype, s.shape.rows, s.shape.cols, seed),
        x(normal_floats(c, s.m * s.shape.cols, seed + 1)),
        y(c, s.m * s.shape.rows),
        args{x.data(), s.shape.cols, s.m, weight.w, y.data(), s.shape.rows} {}
  DeviceWeight weight;
  DeviceArray<float> x, y;
  LinearArgs args;
};

double element_bytes(DType dtype) { return dtype == DType::kF8E4M3 ? 1 : 2; }

CudaWorkload linear_workload(const LinearCase& s) {
  CudaWorkload w;
  w.op = "linear";
  w.shape = std::string(s.shape.name) + (s.dtype == DType::kF8E4M3 ? ".fp8.m" : ".bf16.m") +
            std::to_string(s.m);
  const double outputs = as_double(s.m * s.shape.rows);
  w.bytes = as_double(s.shape.rows * s.shape.cols) * element_bytes(s.dtype) +
            4 * (as_double(s.m * s.shape.cols) + outputs);
  w.flops = 2 * outputs * as_double(s.shape.cols);
  w.prepare = prepare_sets<LinearSet>(s, [](KernelContext& c, const LinearSet& set) {
    projections(c, {&set.args, 1}, true, false);
  });
  return w;
}

struct GroupedSet {
  GroupedSet(KernelContext& c, const bench::GpuGroupedShape& s, uint32_t seed)
      : all(c, DType::kF8E4M3, s.groups * s.rows, s.cols, seed),
        host(make_weights(all.w, s)),
        weights(c, host),
        offsets(c, make_offsets(s)),
        x(normal_floats(c, s.rows_of_x * s.cols, seed + 1)),
        y(c, s.rows_of_x * s.rows),
        product{x.data(), s.cols, host, weights.data(), y.data(), s.rows} {
    args.products = {&product, 1};
    args.offsets = offsets.data();
    args.groups = s.groups;
    args.rows = s.rows_of_x;
    args.native = true;
  }
  GroupedSet(const GroupedSet&) = delete;
  static std::vector<Weight> make_weights(const Weight& all, const bench::GpuGroupedShape& s) {
    std::vector<Weight> list;
    for (int64_t g = 0; g < s.groups; ++g) list.push_back(all.row_slice(g * s.rows, s.rows));
    return list;
  }
  // Sizes between half and one and a half of the mean.
  static std::vector<int64_t> make_offsets(const bench::GpuGroupedShape& s) {
    std::vector<int64_t> offsets{0};
    for (int64_t g = 0; g < s.groups; ++g) {
      const int64_t even = (g + 1) * s.rows_of_x / s.groups, mean = s.rows_of_x / s.groups;
      offsets.push_back(g + 1 == s.groups ? s.rows_of_x : even + (g % 2 == 0 ? mean / 2 : 0));
    }
    return offsets;
  }
  DeviceWeight all;
  std::vector<Weight> host;
  DeviceArray<Weight> weights;
  DeviceArray<int64_t> offsets;
  DeviceArray<float> x, y;
  GroupedProduct product;
  GroupedLinearArgs args;
};

CudaWorkload grouped_workload(const bench::GpuGroupedShape& s) {
  CudaWorkload w;
  w.op = "grouped_linear";
  w.shape = std::string(s.name) + ".fp8";
  const int64_t active = std::min(s.groups, s.rows_of_x);
  w.bytes = as_double(active * s.rows * s.cols) + as_double(4 * s.rows_of_x * (s.cols + s.rows));
  w.flops = 2.0 * as_double(s.rows_of_x * s.rows) * as_double(s.cols);
  w.prepare = prepare_sets<GroupedSet>(
      s, [](KernelContext& c, const GroupedSet& set) { grouped_linear(c, set.args); });
  return w;
}

}  // namespace

std::vector<CudaWorkload> cuda_workloads() {
  std::vector<CudaWorkload> list;
  for (const auto& s : bench::kGpuSparseShapes) list.push_back(sparse_workload(s));
  for (const auto& s : bench::kGpuIndexShapes) list.push_back(index_workload(s));
  for (const auto& s : bench::kGpuTopkShapes) list.push_back(topk_workload(s));
  for (const DType dtype : {DType::kF8E4M3, DType::kBF16}) {
    for (const auto& s : bench::kGpuLinearShapes) {
      for (const int64_t m : bench::kGpuLinearRows) list.push_back(linear_workload({s, m, dtype}));
    }
  }
  for (const auto& s : bench::kGpuGroupedShapes) list.push_back(grouped_workload(s));
  for (CudaWorkload& w : training_workloads()) list.push_back(std::move(w));
  return list;
}

}  // namespace tamis
