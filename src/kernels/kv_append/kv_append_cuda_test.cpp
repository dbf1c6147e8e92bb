// kv_append and kv_gather on CUDA: the bytes of the CPU.
#include <cstring>

#include "kernels/kv_append/kv_append.h"
#include "kernels/kv_gather/kv_gather.h"
#include "support/cuda_cache.h"

namespace tamis {
namespace {

constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFP8};

class KvAppendCuda : public CudaTest {
 protected:
  void expect_same_bytes(const KvLayout& layout, bool ue8m0, uint32_t seed) {
    const int64_t gap = 5, tokens = 9;
    PagedCache cache(layout, {70, 3}, 1, 2);
    TokenList list;
    for (const int64_t p : {0, 63, 64, 69, 5, 17}) list.add(0, p);
    for (const int64_t p : {0, 1, 2}) list.add(1, p);
    std::vector<float> c_kv = random_floats(tokens * layout.kv_lora, seed, 3);
    std::vector<float> k_pe = random_floats(tokens * (layout.rope + gap), seed + 1);
    std::vector<float> key = random_floats(tokens * layout.index_dim, seed + 2);
    c_kv[0] = NAN;
    c_kv[1] = 1e30f;
    std::fill_n(c_kv.begin() + layout.kv_lora, layout.kv_lora, 0.0f);
    std::fill_n(key.begin(), layout.index_dim, 0.0f);
    key[static_cast<size_t>(layout.index_dim)] = INFINITY;

    const DeviceCache device(context(), cache);
    const TokenMap host_map = list.map(cache, 0, tokens);
    const DeviceTokens map(context(), host_map, device);
    const Device<float> dc(context(), c_kv), dk(context(), k_pe), di(context(), key);
    kv_append(reference(), {c_kv.data(), k_pe.data(), layout.rope + gap, key.data(), ue8m0,
                            cache.layer(), host_map});
    kv_append(context(), {dc.data(), dk.data(), layout.rope + gap, di.data(), ue8m0, device.layer(),
                          map.map()});
    EXPECT_TRUE(device.read() == cache.bytes());
  }
};

TEST_F(KvAppendCuda, WritesTheSameBytes) {
  for (const KvFormat latent : kFormats) {
    for (const KvFormat index : kFormats) {
      for (const bool ue8m0 : {false, true}) {
        expect_same_bytes({512, 64, 128, latent, index}, ue8m0, 1);
        expect_same_bytes({40, 4, 20, latent, index}, ue8m0, 2);
        expect_same_bytes({136, 16, 64, latent, index}, ue8m0, 3);
      }
    }
  }
}

TEST_F(KvAppendCuda, GatherReadsWhatReadLatentReads) {
  for (const KvFormat format : kFormats) {
    for (const KvLayout& layout :
         {KvLayout{512, 64, 0, format, format}, KvLayout{40, 6, 0, format, format}}) {
      const int64_t width = layout.kv_lora + layout.rope, n = 130;
      const PagedCache cache(layout, {5, n}, 3, 4);
      const DeviceCache device(context(), cache);
      TokenList list;
      list.add(1, n - 1);
      const TokenMap host_map = list.map(cache, 0, 1);
      const DeviceTokens map(context(), host_map, device);
      std::vector<float> want(static_cast<size_t>(n * width)),
          want_pe(static_cast<size_t>(n * layout.rope));
      kv_gather(reference(), {cache.layer(), host_map, n, want.data(), want_pe.data()});
      const Device<float> got(context(), n * width), got_pe(context(), n * layout.rope);
      kv_gather(context(), {device.layer(), map.map(), n, got.data(), got_pe.data()});
      EXPECT_EQ(got.read(), want);
      EXPECT_EQ(got_pe.read(), want_pe);
    }
  }
}

}  // namespace
}  // namespace tamis
