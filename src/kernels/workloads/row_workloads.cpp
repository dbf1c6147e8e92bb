// Operations on rows and those of the experts.
#include <cstring>

#include "bench/workloads.h"
#include "kernels/ops.h"
#include "kernels/workloads/operands.h"

namespace tamis {
namespace {

using Run = std::function<void(KernelContext&)>;

// x and y [rows, width], two rows of parameters, and whatever else an operation of rows needs.
struct RowOperands {
  RowOperands(int64_t rows, int64_t width)
      : x(noise(rows * width, 1)), y(noise(rows * width, 2)), w(noise(2 * width, 3)) {}
  std::vector<float> x, y, w;
  std::vector<uint8_t> bytes;
  std::vector<int32_t> ids;
  std::vector<double> loss;
  OwnedWeight table;
};

Run rms_norm_run(const bench::RowShape& s, const std::shared_ptr<RowOperands>& o) {
  const RmsNormArgs a{o->x.data(), s.width, nullptr,     o->w.data(), s.rows,
                      s.width,     1e-6F,   o->y.data(), s.width,     false};
  return [o, a](KernelContext& c) { rms_norm(c, a); };
}

Run layer_norm_run(const bench::RowShape& s, const std::shared_ptr<RowOperands>& o) {
  const LayerNormArgs a{o->x.data(), s.width, o->w.data(), o->w.data() + s.width,
                        s.rows,      s.width, 1e-6F,       o->y.data(),
                        s.width};
  return [o, a](KernelContext& c) { layer_norm(c, a); };
}

Run rope_run(const bench::RowShape& s, const std::shared_ptr<RowOperands>& o) {
  // Cos and sin of no angle in particular: one table row for each token.
  RopeArgs a{o->x.data(), s.width,    s.width, s.rows, 1, s.width, RopeLayout::kInterleaved,
             o->y.data(), o->y.data()};
  return [o, a](KernelContext& c) { rope(c, a); };
}

Run hadamard_run(const bench::RowShape& s, const std::shared_ptr<RowOperands>& o) {
  return [o, s](KernelContext& c) { hadamard(c, {o->x.data(), s.rows, s.width, true}); };
}

Run swiglu_run(const bench::RowShape& s, const std::shared_ptr<RowOperands>& o) {
  return [o, s](KernelContext& c) {
    swiglu(c, {o->x.data(), o->y.data(), s.rows, s.width, o->x.data()});
  };
}

Run quantize_run(const bench::RowShape& s, const std::shared_ptr<RowOperands>& o) {
  o->bytes.resize(static_cast<size_t>(s.rows * s.width));
  return [o, s](KernelContext& c) {
    c.pool().run(s.rows, [&](int64_t r, int) {
      act_quant_row(o->x.data() + r * s.width, s.width, true, o->bytes.data() + r * s.width,
                    o->y.data() + r * s.width);
    });
  };
}

Run embedding_run(const bench::RowShape& s, const std::shared_ptr<RowOperands>& o) {
  constexpr int64_t kVocabulary = 8192;
  o->table = random_weight(DType::kBF16, kVocabulary, s.width);
  for (int64_t i = 0; i < s.rows; ++i) {
    o->ids.push_back(static_cast<int32_t>(i * 7919 % kVocabulary));
  }
  const EmbeddingArgs a{o->table.w, 0, o->ids.data(), s.rows, o->y.data()};
  return [o, a](KernelContext& c) { embedding(c, a); };
}

Run kv_append_run(const bench::RowShape& s, const std::shared_ptr<RowOperands>& o) {
  constexpr int64_t kRope = 64, kIndexDim = 128;
  const int64_t latent = s.width - kRope;
  const auto cache = std::make_shared<OwnedCache>(
      KvLayout{latent, kRope, kIndexDim, KvFormat::kBF16, KvFormat::kFP8}, s.rows, s.rows);
  KvAppendArgs a;
  a.c_kv = o->x.data();
  a.k_pe = o->y.data();
  a.k_pe_stride = kRope;
  a.index_key = o->y.data();
  a.kv = cache->kv;
  a.tokens = cache->map();
  return [o, cache, a](KernelContext& c) { kv_append(c, a); };
}

Run cross_entropy_run(const bench::RowShape& s, const std::shared_ptr<RowOperands>& o) {
  o->ids.assign(static_cast<size_t>(s.rows), 7);
  o->loss.resize(static_cast<size_t>(s.rows));
  return [o, s](KernelContext& c) {
    cross_entropy(c, {o->x.data(), o->ids.data(), s.rows, s.width, o->loss.data()});
  };
}

// What an operation costs for each element: bytes read and written, and arithmetic.
struct RowOp {
  const char* name;
  double bytes, flops;
  Run (*make)(const bench::RowShape&, const std::shared_ptr<RowOperands>&);
};
constexpr RowOp kRowOps[] = {
    {"cross_entropy", 4, 3, cross_entropy_run},
    {"embedding", 6, 0, embedding_run},
    {"hadamard", 8, 7, hadamard_run},
    {"kv_append", 6, 0, kv_append_run},
    {"layer_norm", 8, 7, layer_norm_run},
    {"quantize_fp8", 5, 2, quantize_run},
    {"rms_norm", 8, 4, rms_norm_run},
    {"rope", 12, 3, rope_run},
    {"swiglu", 12, 4, swiglu_run},
};

Workload row_workload(const bench::RowShape& s, const RowOp& op) {
  Workload w;
  w.op = op.name;
  w.shape = s.name;
  w.bytes = op.bytes * static_cast<double>(s.rows * s.width);
  w.flops = op.flops * static_cast<double>(s.rows * s.width);
  w.prepare = [s, &op] { return op.make(s, std::make_shared<RowOperands>(s.rows, s.width)); };
  return w;
}

struct MoeOperands {
  explicit MoeOperands(const bench::MoeShape& s)
      : logits(noise(s.tokens * s.experts, 1)),
        x(noise(s.tokens * s.width, 2)),
        rows(static_cast<size_t>(s.tokens * s.chosen * s.width)),
        y(x.size()),
        weights(static_cast<size_t>(s.tokens * s.chosen)),
        ids(weights.size()),
        row_of(weights.size()),
        offsets(static_cast<size_t>(s.experts) + 1) {
    gate.logits = logits.data();
    gate.tokens = s.tokens;
    gate.experts = s.experts;
    gate.groups = s.groups;
    gate.topk_group = s.topk_group;
    gate.num_chosen = s.chosen;
    gate.ids = ids.data();
    gate.weights = weights.data();
    permute = {ids.data(), s.tokens,      s.chosen,       s.experts,  x.data(),
               s.width,    row_of.data(), offsets.data(), rows.data()};
    combine = {rows.data(), row_of.data(), weights.data(), s.tokens,
               s.chosen,    s.width,       nullptr,        y.data()};
  }
  // The gate's choice, for the operations that follow it.
  void choose() {
    KernelContext one(1);
    moe_gate(one, gate);
    moe_permute(one, permute);
  }
  std::vector<float> logits, x, rows, y, weights;
  std::vector<int32_t> ids, row_of;
  std::vector<int64_t> offsets;
  MoeGateArgs gate;
  MoePermuteArgs permute;
  MoeCombineArgs combine;
};

Workload moe_workload(const char* op, const bench::MoeShape& s, double bytes, double flops,
                      void (*run)(KernelContext&, MoeOperands&)) {
  Workload w;
  w.op = op;
  w.shape = s.name;
  w.bytes = bytes;
  w.flops = flops;
  w.prepare = [s, run] {
    const auto o = std::make_shared<MoeOperands>(s);
    o->choose();
    return [o, run](KernelContext& c) { run(c, *o); };
  };
  return w;
}

}  // namespace

void add_moe_workloads(std::vector<Workload>& list) {
  for (const bench::MoeShape& s : bench::kMoeShapes) {
    const auto logits = static_cast<double>(s.tokens * s.experts);
    const auto x = static_cast<double>(s.tokens * s.width);
    const auto rows = static_cast<double>(s.chosen) * x;
    list.push_back(moe_workload("moe_gate", s, 4 * logits, 4 * logits,
                                [](KernelContext& c, MoeOperands& o) { moe_gate(c, o.gate); }));
    list.push_back(
        moe_workload("moe_permute", s, 4 * (x + rows), 0,
                     [](KernelContext& c, MoeOperands& o) { moe_permute(c, o.permute); }));
    list.push_back(
        moe_workload("moe_combine", s, 4 * (x + rows), 2 * rows,
                     [](KernelContext& c, MoeOperands& o) { moe_combine(c, o.combine); }));
  }
}

void add_row_workloads(std::vector<Workload>& list) {
  for (const bench::RowShape& s : bench::kRowShapes) {
    for (const RowOp& op : kRowOps) {
      if (std::strcmp(op.name, s.op) == 0) list.push_back(row_workload(s, op));
    }
  }
}

}  // namespace tamis
