// The number formats and small operations against vectors made with the public references
// (tests/golden/units/expected.safetensors): bytes must be equal.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "kernels/hadamard/hadamard.h"
#include "kernels/indexer_logits/indexer_logits.h"
#include "kernels/kv_append/kv_append.h"
#include "kernels/linear/linear.h"
#include "kernels/quantize_fp8/quantize_fp8.h"
#include "kernels/rope/rope.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

const SafetensorsFile& file() {
  static const SafetensorsFile opened(std::string(TAMIS_SOURCE_DIR) +
                                      "/tests/golden/units/expected.safetensors");
  return opened;
}

Tensor tensor(const std::string& name) {
  const TensorInfo* info = file().find(name);
  EXPECT_NE(info, nullptr) << name;
  return file().tensor(*info);
}

std::vector<float> floats(const std::string& name) {
  const Tensor t = tensor(name);
  std::vector<float> x(static_cast<size_t>(t.shape.elements()));
  for (size_t i = 0; i < x.size(); ++i) x[i] = tensor_element(t, static_cast<int64_t>(i));
  return x;
}

std::vector<uint8_t> bytes(const std::string& name) {
  const Tensor t = tensor(name);
  const auto* begin = reinterpret_cast<const uint8_t*>(t.data);
  return {begin, begin + t.bytes()};
}

template <typename T>
T scalar(const std::string& name) {
  T value;
  std::memcpy(&value, tensor(name).data, sizeof(value));
  return value;
}

std::vector<uint8_t> as_bf16(const std::vector<float>& x) {
  std::vector<uint8_t> out(x.size() * 2);
  for (size_t i = 0; i < x.size(); ++i) {
    const uint16_t bits = float_to_bf16(x[i]);
    EXPECT_EQ(bf16_to_float(bits), x[i]) << "is no bf16 value";
    std::memcpy(&out[2 * i], &bits, 2);
  }
  return out;
}

TEST(GoldenUnits, E4m3) {
  const auto table = floats("e4m3.decode_table");
  for (size_t b = 0; b < 256; ++b) {
    const float x = e4m3_to_float(static_cast<uint8_t>(b));
    EXPECT_EQ(std::isnan(x) ? 9999.0f : x, table[b]) << b;
  }
  const auto x = floats("e4m3.encode.x");
  const auto q = bytes("e4m3.encode.q");
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(float_to_e4m3(x[i]), q[i]) << x[i];
}

TEST(GoldenUnits, ActQuant) {
  const auto x = floats("act_quant.x");
  for (const bool ue8m0 : {false, true}) {
    const std::string name = ue8m0 ? "act_quant.ue8m0" : "act_quant.plain";
    std::vector<uint8_t> q(x.size());
    std::vector<float> s(x.size() / 128);
    for (size_t r = 0; r < 10; ++r) {
      act_quant_row(&x[r * 256], 256, ue8m0, &q[r * 256], &s[r * 2]);
    }
    EXPECT_EQ(q, bytes(name + ".q"));
    EXPECT_EQ(s, floats(name + ".s"));
  }
}

TEST(GoldenUnits, BlockQuant) {
  const auto w = floats("block_quant.w");
  for (const bool ue8m0 : {false, true}) {
    const std::string name = ue8m0 ? "block_quant.ue8m0" : "block_quant.plain";
    std::vector<uint8_t> q(w.size());
    std::vector<float> s(9), back(w.size());
    block_quant(w.data(), 300, 260, ue8m0, q.data(), s.data());
    EXPECT_EQ(q, bytes(name + ".q"));
    EXPECT_EQ(s, floats(name + ".s"));
    Weight weight;
    weight.data = reinterpret_cast<const std::byte*>(q.data());
    weight.dtype = DType::kF8E4M3;
    weight.rows = 300;
    weight.cols = weight.row_bytes = 260;
    weight.scales = reinterpret_cast<const std::byte*>(s.data());
    weight.scale_stride = 3;
    for (int64_t r = 0; r < 300; ++r) {
      dequantize_row(weight, r, 0, 260, back.data() + r * 260);
    }
    EXPECT_EQ(back, floats(name + ".dequant"));
  }
}

TEST(GoldenUnits, Hadamard) {
  KernelContext context(1);
  for (const int64_t n : {2, 16, 128}) {
    const std::string name = "hadamard." + std::to_string(n);
    auto x = floats(name + ".x");
    hadamard(context, {x.data(), 3, n, true});
    EXPECT_EQ(as_bf16(x), bytes(name + ".y"));
  }
}

// One layer of cache over caller's bytes, one sequence with its pages in order.
struct OneSequence {
  OneSequence(const KvLayout& layout, int64_t tokens)
      : pages(static_cast<size_t>((tokens + 63) / 64)),
        memory(pages.size() * static_cast<size_t>(layout.page_bytes())),
        kv{layout, memory.data(), layout.page_bytes()},
        sequence(static_cast<size_t>(tokens), 0) {
    for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i);
    for (int32_t t = 0; t < tokens; ++t) position.push_back(t);
    seq.pages = pages.data();
  }
  TokenMap tokens() const {
    return {static_cast<int64_t>(position.size()), sequence.data(), position.data(), &seq};
  }

  std::vector<int32_t> pages;
  std::vector<std::byte> memory;
  KvLayer kv;
  std::vector<int32_t> sequence, position;
  KvSequence seq;
};

TEST(GoldenUnits, CacheRowsOf656Bytes) {
  const auto x = floats("kv656.x");
  const auto want = bytes("kv656.bytes");
  OneSequence cache({512, 64, 0, KvFormat::kFP8, KvFormat::kF32}, 128);
  ASSERT_EQ(cache.kv.layout.latent_row_bytes(), 656);
  std::vector<float> c_kv(128 * 512);
  for (size_t t = 0; t < 128; ++t) std::copy_n(&x[t * 576], 512, &c_kv[t * 512]);
  KernelContext context(2);
  kv_append(context, {c_kv.data(), x.data() + 512, 576, nullptr, false, cache.kv, cache.tokens()});
  std::vector<float> back(128 * 576);
  for (int64_t t = 0; t < 128; ++t) {
    const auto* row = reinterpret_cast<const uint8_t*>(latent_row(cache.kv, cache.seq, t));
    EXPECT_EQ(std::memcmp(row, &want[static_cast<size_t>(t) * 656], 656), 0) << "token " << t;
    read_latent(cache.kv, cache.seq, t, &back[static_cast<size_t>(t) * 576]);
  }
  for (float& v : back) v = round_to_bf16(v);
  EXPECT_EQ(as_bf16(back), bytes("kv656.dequant"));
}

// DeepGEMM's test makes its pages with s = amax / 448 and x * (1/s); the model's own code, and with
// it kv_append, with amax * (1/448) and x / s. So the layout is checked
// with DeepGEMM's quantiser, byte for byte, and kv_append against it to the last place.
TEST(GoldenUnits, PagedIndexerKeys) {
  const auto x = floats("paged_index_k.x");
  const auto want = bytes("paged_index_k.bytes");
  OneSequence cache({0, 0, 128, KvFormat::kF32, KvFormat::kFP8}, 128);
  ASSERT_EQ(cache.kv.page_stride, 8448);
  for (int64_t t = 0; t < 128; ++t) {
    const float* key = x.data() + t * 128;
    float amax = 1e-4f;
    for (int64_t i = 0; i < 128; ++i) amax = std::max(amax, std::fabs(key[i]));
    const float scale = amax / 448.0f, inverse = 1.0f / scale;
    std::byte* page = index_page(cache.kv, cache.seq, t);
    for (int64_t i = 0; i < 128; ++i) {
      page[t % 64 * 128 + i] = std::byte{float_to_e4m3(key[i] * inverse)};
    }
    std::memcpy(page + 64 * 128 + t % 64 * 4, &scale, 4);
  }
  EXPECT_EQ(std::memcmp(cache.memory.data(), want.data(), want.size()), 0);

  std::vector<float> theirs(128 * 128), ours(128 * 128);
  for (int64_t t = 0; t < 128; ++t) {
    read_index_key(cache.kv, cache.seq, t, theirs.data() + t * 128);
  }
  KernelContext context(2);
  kv_append(context, {x.data(), x.data(), 0, x.data(), false, cache.kv, cache.tokens()});
  for (int64_t t = 0; t < 128; ++t) {
    read_index_key(cache.kv, cache.seq, t, ours.data() + t * 128);
    for (size_t i = 0; i < 128; ++i) {
      const size_t at = static_cast<size_t>(t) * 128 + i;
      // Each is within half a step (2^-4) of x, or half of the smallest step, s * 2^-10 < 1e-5.
      EXPECT_NEAR(ours[at], x[at], std::max(std::fabs(x[at]) * 0x1.01p-4f, 1e-5f)) << at;
      EXPECT_NEAR(ours[at], theirs[at], std::max(std::fabs(x[at]) * 0x1.02p-3f, 2e-5f)) << at;
    }
  }
}

TEST(GoldenUnits, IndexScoresOfFp8KeysAndQueries) {
  const auto q8 = bytes("fp8_index.q"), k8 = bytes("fp8_index.k");
  const auto w = floats("fp8_index.w"), k_s = floats("fp8_index.k_s"),
             out = floats("fp8_index.out");
  OneSequence cache({0, 0, 128, KvFormat::kF32, KvFormat::kFP8}, 40);
  std::memcpy(cache.memory.data(), k8.data(), k8.size());
  std::memcpy(cache.memory.data() + 64 * 128, k_s.data(), k_s.size() * 4);
  std::vector<float> q(q8.size()), logits(5 * 40);
  for (size_t i = 0; i < q.size(); ++i) q[i] = e4m3_to_float(q8[i]);
  const std::vector<int32_t> sequence(5, 0), position(5, 39);
  for (const std::string name : {"simd", "reference"}) {
    KernelContext context(2);
    context.force("indexer_logits", name);
    indexer_logits(
        context,
        {{q.data(), w.data(), 4, cache.kv, {5, sequence.data(), position.data(), &cache.seq}},
         logits.data(),
         40});
    double error = 0, norm = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      error += std::pow(static_cast<double>(logits[i]) - out[i], 2);
      norm += std::pow(static_cast<double>(out[i]), 2);
    }
    EXPECT_LE(std::sqrt(error / norm), 1e-6) << name;
  }
}

struct YarnCase {
  const char* name;
  int64_t dim;
  double theta;
  bool has_yarn;
  YarnConfig yarn;
};

// The tables' configurations, as in yarn_NAME.json beside them.
const YarnCase kYarn[] = {
    {"default", 64, 10000, false, {}},
    {"mscale_ratio", 32, 10000, true, {8, 32, 1, 1.0, 0.5, 256, true}},
    {"released", 64, 10000, true, {40, 32, 1, 1.0, 1.0, 4096, true}},
    {"theta5e5", 48, 500000, true, {16, 64, 2, 0.707, 0.707, 1024, true}},
    {"tiny", 16, 10000, true, {40, 32, 1, 1.0, 1.0, 64, true}},
};

TEST(GoldenUnits, YarnTables) {
  KernelContext context(2);
  for (const YarnCase& c : kYarn) {
    const std::string name = std::string("yarn.") + c.name;
    const YarnConfig* yarn = c.has_yarn ? &c.yarn : nullptr;
    const auto inv_freq = rope_inv_freq(c.dim, c.theta, yarn);
    const auto want = floats(name + ".inv_freq");
    ASSERT_EQ(inv_freq.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_NEAR(inv_freq[i], want[i], 1e-6 * want[i]) << name << " " << i;
    }
    const double scaling = rope_attention_scaling(yarn);
    EXPECT_NEAR(scaling, scalar<float>(name + ".attention_scaling"), 1e-6);
    const double softmax_scale = scalar<double>(name + ".softmax_scale");
    EXPECT_NEAR(mla_softmax_scale(192, yarn), softmax_scale, 1e-12 * softmax_scale);

    std::vector<int32_t> positions(10);
    for (size_t i = 0; i < 10; ++i) {
      int64_t p;
      std::memcpy(&p, tensor(name + ".positions").data + i * 8, 8);
      positions[i] = static_cast<int32_t>(p);
    }
    std::vector<float> cos(10 * want.size()), sin(cos.size());
    rope_tables(context, want, static_cast<float>(scaling), positions.data(), 10, cos.data(),
                sin.data());
    const auto want_cos = floats(name + ".cos"), want_sin = floats(name + ".sin");
    for (size_t i = 0; i < cos.size(); ++i) {
      EXPECT_NEAR(cos[i], want_cos[i], 1e-5) << name << " " << i;
      EXPECT_NEAR(sin[i], want_sin[i], 1e-5) << name << " " << i;
    }
  }
}

}  // namespace
}  // namespace tamis
