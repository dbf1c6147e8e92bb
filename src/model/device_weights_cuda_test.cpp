#include <gtest/gtest.h>

#include <cstring>

#include "kernels/memory.h"
#include "model/device_weights.h"

namespace tamis {
namespace {

class DeviceWeightsCuda : public ::testing::Test {
 protected:
  DeviceWeightsCuda() : context_(2, Backend::kCuda) {}

  void expect_copy(const std::byte* device, const std::byte* host, int64_t bytes) {
    ASSERT_NE(device, host);
    std::vector<std::byte> got(static_cast<size_t>(bytes));
    get(context_, got.data(), device, bytes);
    EXPECT_EQ(std::memcmp(got.data(), host, got.size()), 0);
  }
  void expect_copy(const Weight& device, const Weight& host) {
    EXPECT_EQ(device.row_bytes, host.row_bytes);
    expect_copy(device.data, host.data, host.rows * host.row_bytes);
    if (host.scales == nullptr) return;
    const int64_t rows = (host.rows + kFp8Block - 1) / kFp8Block;
    expect_copy(device.scales, host.scales, rows * host.scale_stride * 4);
  }
  void expect_copy(const Parameters& device, const Parameters& host) {
    expect_copy(reinterpret_cast<const std::byte*>(device.data()),
                reinterpret_cast<const std::byte*>(host.data()),
                static_cast<int64_t>(host.values.size() * sizeof(float)));
  }

  KernelContext context_;
};

TEST_F(DeviceWeightsCuda, EveryKindArrivesWhole) {
  for (const char* name : {"b_fp32_sparse_yarn", "d2_fp8_ragged"}) {
    const Checkpoint checkpoint =
        Checkpoint::open(std::string(TAMIS_SOURCE_DIR) + "/tests/golden/model/" + name, {false});
    const ModelConfig config = ModelConfig::parse(checkpoint.config_text(), name);
    const ModelWeights host =
        ModelWeights::load(checkpoint, config, *single_group(), config.num_mtp_layers > 0);
    int64_t last = 0;
    const DeviceWeights placed(context_, host, [&](int64_t done, int64_t total) {
      EXPECT_GT(done, last);
      EXPECT_EQ(total, device_weight_bytes(host));
      last = done;
    });
    EXPECT_GE(last, device_weight_bytes(host) - 256);
    const ModelWeights& device = placed.weights();
    expect_copy(device.embed, host.embed);
    expect_copy(device.head, host.head);
    expect_copy(device.norm, host.norm);
    for (size_t l = 0; l < host.layers.size(); ++l) {
      const LayerWeights &d = device.layers[l], &h = host.layers[l];
      expect_copy(d.input_norm, h.input_norm);
      expect_copy(d.attention.q_a, h.attention.q_a);
      expect_copy(d.attention.kv_b, h.attention.kv_b);
      expect_copy(d.attention.indexer->wq_b, h.attention.indexer->wq_b);
      expect_copy(d.attention.indexer->k_norm_b, h.attention.indexer->k_norm_b);
      for (size_t e = 0; e < h.moe.experts.size(); ++e) {
        expect_copy(d.moe.experts[e].down, h.moe.experts[e].down);
        EXPECT_EQ(d.moe.experts[e].up.data, d.moe.ups.weights[e].data);
        EXPECT_EQ(d.moe.experts[e].up.scales, d.moe.ups.weights[e].scales);
      }
      if (h.moe.experts.empty()) continue;
      // The table that kernels read names the device's addresses.
      std::vector<Weight> table(d.moe.gates.weights.size());
      get(context_, table.data(), d.moe.gates.on_device,
          static_cast<int64_t>(table.size() * sizeof(Weight)));
      for (size_t e = 0; e < table.size(); ++e) {
        EXPECT_EQ(table[e].data, d.moe.gates.weights[e].data);
      }
    }
  }
}

}  // namespace
}  // namespace tamis
