#include "kernels/workloads/workloads.h"

#include <gtest/gtest.h>

#include <set>

#include "kernels/machine_peak.h"

namespace tamis {
namespace {

TEST(Workloads, NamesAreUniqueAndCostsPositive) {
  std::set<std::string> names;
  for (const Workload& w : all_workloads()) {
    EXPECT_TRUE(names.insert(w.op + "/" + w.shape).second) << w.op << " " << w.shape;
    EXPECT_GT(w.bytes, 0) << w.op << " " << w.shape;
    EXPECT_GE(w.flops, 0) << w.op << " " << w.shape;
  }
}

TEST(Workloads, EveryOperationHasOne) {
  std::set<std::string> ops;
  for (const Workload& w : all_workloads()) ops.insert(w.op);
  for (const char* op :
       {"cross_entropy", "embedding",   "hadamard", "indexer_logits", "indexer_select",
        "kv_append",     "layer_norm",  "linear",   "linear_fp8",     "mla_dense",
        "mla_sparse",    "moe_combine", "moe_gate", "moe_permute",    "per_head_linear",
        "quantize_fp8",  "rms_norm",    "rope",     "swiglu",         "topk"}) {
    EXPECT_EQ(ops.count(op), 1U) << op;
  }
}

// Costs that can be counted by hand, against the formulas of the table.
TEST(Workloads, Costs) {
  int found = 0;
  for (const Workload& w : all_workloads()) {
    if (w.op == "linear" && w.shape == "v32_expert_up.BF16.m1") {
      EXPECT_EQ(w.bytes, 7168.0 * 2048 * 2 + 4 * (7168 + 2048));
      EXPECT_EQ(w.flops, 2.0 * 7168 * 2048);
      ++found;
    } else if (w.op == "linear" && w.shape == "v32_expert_up.F8_E4M3.m1") {
      EXPECT_EQ(w.bytes, 7168.0 * 2048 + 56 * 16 * 4 + 4 * (7168 + 2048));
      ++found;
    } else if (w.op == "mla_sparse" && w.shape == "v32_decode_2k_of_32k.fp8") {
      EXPECT_EQ(w.bytes, 2048.0 * 656 + 4 * 128 * (2 * 512 + 64));
      EXPECT_EQ(w.flops, 2.0 * 2048 * 128 * (576 + 512));
      ++found;
    } else if (w.op == "mla_dense" && w.shape == "mini_prompt512") {
      EXPECT_EQ(w.flops, 2.0 * 512 * 513 / 2 * 4 * 320);
      ++found;
    }
  }
  EXPECT_EQ(found, 4);
}

// Small shapes run, twice, on both back ends.
TEST(Workloads, MiniShapesRun) {
  for (const Backend backend : {Backend::kCpu, Backend::kReference}) {
    KernelContext context(2, backend);
    for (const Workload& w : all_workloads()) {
      if (w.shape.rfind("mini", 0) != 0 || w.flops > 4e6) continue;
      SCOPED_TRACE(w.op + " " + w.shape);
      const auto call = w.prepare();
      call(context);
      call(context);
    }
  }
}

TEST(MachinePeak, IsPlausible) {
  KernelContext context(2);
  const MachinePeak peak = measure_peak(context);
  EXPECT_GT(peak.read_bytes_per_second, 1e7);
  EXPECT_GT(peak.flops, 1e8);
  EXPECT_LT(peak.flops, 1e15);
  EXPECT_GE(cache_flush_bytes(), int64_t{1} << 27);
}

}  // namespace
}  // namespace tamis
