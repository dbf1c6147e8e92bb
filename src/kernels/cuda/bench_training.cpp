// The operations of training at the shapes of DeepSeek-V3.2.
#include "kernels/cuda/bench_training.h"

#include <algorithm>
#include <random>

#include "kernels/cuda/bench_operands.h"
#include "kernels/mla_sparse/mla_sparse_train.h"

namespace tamis {
namespace {

constexpr int64_t kHeads = 128, kLatent = 512, kRope = 64, kSelected = 2048;

struct Shape {
  const char* name;
  int64_t tokens;
  bool backward, bf16;
};

// Row t: all earlier positions and its own, at most kSelected of them, one at random from each
// part.
std::vector<int32_t> selection(int64_t tokens, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> rows(static_cast<size_t>(tokens * kSelected), -1);
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t seen = t + 1, count = std::min(seen, kSelected);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t begin = i * seen / count, end = (i + 1) * seen / count;
      rows[static_cast<size_t>(t * kSelected + i)] = static_cast<int32_t>(
          begin + static_cast<int64_t>(random() % static_cast<uint32_t>(end - begin)));
    }
  }
  return rows;
}

struct SparseSet {
  SparseSet(KernelContext& c, const Shape& s, uint32_t seed)
      : q(normal_floats(c, s.tokens * kHeads * (kLatent + kRope), seed)),
        kv(normal_floats(c, s.tokens * (kLatent + kRope), seed + 1)),
        d_out(normal_floats(c, s.tokens * kHeads * kLatent, seed + 2)),
        out(c, s.tokens * kHeads * kLatent),
        log_sum(c, s.tokens * kHeads),
        dq(c, s.tokens * kHeads * (kLatent + kRope)),
        dkv(c, s.tokens * (kLatent + kRope)),
        indices(c, selection(s.tokens, seed)) {
    args.q_latent = q.data();
    args.q_pe = q.data() + s.tokens * kHeads * kLatent;
    args.q_pe_stride = kRope;
    args.c_kv = kv.data();
    args.k_pe = kv.data() + s.tokens * kLatent;
    args.tokens = s.tokens;
    args.heads = kHeads;
    args.kv_lora = kLatent;
    args.rope = kRope;
    args.indices = indices.data();
    args.k = kSelected;
    args.softmax_scale = 0.135F;
    args.d_out = d_out.data();
    args.dq_latent = dq.data();
    args.dq_pe = dq.data() + s.tokens * kHeads * kLatent;
    args.dc_kv = dkv.data();
    args.dk_pe = dkv.data() + s.tokens * kLatent;
    if (s.backward) {
      mla_sparse_train(c, {args, out.data(), log_sum.data(), nullptr});
      args.out = out.data();
      args.log_sum = log_sum.data();
    }
  }
  DeviceArray<float> q, kv, d_out, out, log_sum, dq, dkv;
  DeviceArray<int32_t> indices;
  MlaSparseBackwardArgs<float> args;
};

CudaWorkload workload(const Shape& s) {
  CudaWorkload w;
  w.op = s.backward ? "mla_sparse_backward" : "mla_sparse_train";
  w.shape = s.name;
  double entries = 0;
  for (int64_t t = 0; t < s.tokens; ++t) entries += static_cast<double>(std::min(t + 1, kSelected));
  // Scores and values; backward again, and dq, dk and dv.
  const double columns = s.backward ? 3 * (kLatent + kRope) + 2 * kLatent : 2 * kLatent + kRope;
  w.flops = 2 * entries * kHeads * columns;
  const double pairs = static_cast<double>(s.tokens * kHeads);
  w.bytes = 4 * entries +
            4 * pairs * (s.backward ? 2 * (kLatent + kRope) + 2 * kLatent : 2 * kLatent + kRope);
  w.prepare = [s](KernelContext& context, int sets) {
    std::vector<std::shared_ptr<SparseSet>> all;
    for (int i = 0; i < sets; ++i) {
      all.push_back(std::make_shared<SparseSet>(context, s, static_cast<uint32_t>(1000 * i)));
    }
    return [all, s](KernelContext& c, int set) {
      c.force("train_products", s.bf16 ? "cuda_bf16" : "cuda");
      const SparseSet& x = *all[static_cast<size_t>(set) % all.size()];
      if (s.backward) return mla_sparse_backward<float>(c, x.args);
      mla_sparse_train(c, {x.args, x.out.data(), x.log_sum.data(), nullptr});
    };
  };
  return w;
}

}  // namespace

std::vector<CudaWorkload> training_workloads() {
  constexpr Shape kShapes[] = {{"h128.k2048.t4096.bf16", 4096, false, true},
                               {"h128.k2048.t4096.f32", 4096, false, false},
                               {"h128.k2048.t4096.bf16", 4096, true, true},
                               {"h128.k2048.t4096.f32", 4096, true, false}};
  std::vector<CudaWorkload> list;
  for (const Shape& s : kShapes) list.push_back(workload(s));
  return list;
}

}  // namespace tamis
