// Native precision against the official low-precision runs (docs/numerics.md 6 and 7).
//
// The stored runs of the case d_fp8 and how each is reached from its checkpoint:
//   fp8_ue8m0   as it is: config.json says scale_fmt ue8m0
//   fp8         without that key: activation scales are floats
//   bf16        converted to bf16: bf16 products, FP8 indexer keys with float scales
//   v32dec_...  with an FP8 cache of latents
// The case c_bf16 holds a run of another implementation, in bf16 with another order of rounding.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "checkpoint/convert.h"
#include "kernels/quantize_fp8/quantize_fp8.h"
#include "reference/stored_case.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

// A folder that goes with the test.
class Scratch {
 public:
  Scratch() {
    std::string name = (fs::temp_directory_path() / "tamis-native-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp");
    path = name;
  }
  ~Scratch() { fs::remove_all(path); }
  Scratch(const Scratch&) = delete;
  fs::path path;
};

TraceOptions official_cache() {
  TraceOptions o;
  o.latent_format = KvFormat::kBF16;
  o.index_format = KvFormat::kFP8;
  return o;
}

LoadOptions native() {
  LoadOptions o;
  o.model.precision = Precision::kNative;
  return o;
}

// The share of entries that stand in the same place.
double equal_share(const TraceTensor& got, const Tensor& want) {
  int64_t equal = 0;
  for (int64_t i = 0; i < want.shape.elements(); ++i) {
    equal += got.ints[static_cast<size_t>(i)] == static_cast<int64_t>(tensor_element(want, i));
  }
  return static_cast<double>(equal) / static_cast<double>(want.shape.elements());
}

// Of the selected positions, the share that both selected; rows hold -1 where fewer are visible.
double overlap(const TraceTensor& got, const Tensor& want) {
  const int64_t rows = want.shape[0], k = want.shape[1];
  int64_t common = 0, all = 0;
  for (int64_t r = 0; r < rows; ++r) {
    std::map<int64_t, int> seen;
    for (int64_t i = 0; i < k; ++i) ++seen[got.ints[static_cast<size_t>(r * k + i)]];
    for (int64_t i = 0; i < k; ++i) {
      const auto s = static_cast<int64_t>(tensor_element(want, r * k + i));
      if (s < 0) continue;
      ++all;
      common += seen.count(s) != 0;
    }
  }
  return static_cast<double>(common) / static_cast<double>(all);
}

// The share of elements that differ from the stored bf16 number by more than nothing.
double changed_share(const TraceTensor& got, const Tensor& want) {
  int64_t changed = 0;
  for (size_t i = 0; i < got.floats.size(); ++i) {
    changed += got.floats[i] != tensor_element(want, static_cast<int64_t>(i));
  }
  return static_cast<double>(changed) / static_cast<double>(got.floats.size());
}

// What an FP8 cache gives back for each latent.
void pass_through_fp8(TraceTensor& latents) {
  const int64_t rows = latents.shape[0], width = latents.shape[1];
  std::vector<uint8_t> q(static_cast<size_t>(width));
  std::vector<float> scales(static_cast<size_t>((width + 127) / 128));
  for (int64_t r = 0; r < rows; ++r) {
    float* x = latents.floats.data() + r * width;
    kv_quant_row(x, width, q.data(), scales.data());
    for (int64_t i = 0; i < width; ++i) {
      const auto at = static_cast<size_t>(i);
      x[i] = round_to_bf16(e4m3_to_float(q[at]) * scales[at / 128]);
    }
  }
}

// The limits of docs/numerics.md 7. The CPU rounds in the official order. cuda rounds the weights
// of attention before they are divided by their sum, so that what follows the first attention is
// another draw of the same rounding errors: there the limits are those between two implementations.
struct OfficialLimits {
  double overlap, logits, router;
};

OfficialLimits limits_of(Backend backend) {
  return backend == Backend::kCuda ? OfficialLimits{0.95, 0.25, 0.90}
                                   : OfficialLimits{0.99, 3e-2, 0.98};
}

void expect_official(const Case& c, const Trace& trace, const std::string& run, Backend backend) {
  const OfficialLimits limits = limits_of(backend);
  const std::string prefix = "official." + run + ".";
  SCOPED_TRACE(prefix);
  const auto stored = [&](const std::string& name) -> const Tensor& {
    return *c.find(prefix + name);
  };
  for (const std::string name : {"c_kv", "k_pe", "index_k", "index_k_scale"}) {
    EXPECT_LE(changed_share(trace.at("kv_cache.0." + name), stored("kv_cache.0." + name)), 0.01)
        << name;
  }
  EXPECT_LE(compare(trace.at("index_scores.0"), stored("index_scores.0")).rel_rms, 5e-3);
  EXPECT_GE(overlap(trace.at("topk.0"), stored("topk.0")), 0.99);
  EXPECT_GE(overlap(trace.at("topk.1"), stored("topk.1")), limits.overlap);
  EXPECT_LE(compare(trace.at("logits"), stored("logits")).rel_rms, limits.logits);
  EXPECT_GE(equal_share(trace.at("router.1.ids"), stored("router.1.ids")), limits.router);
  std::printf("%s logits %.2e, index scores %.1e, overlap %.4f %.4f\n", run.c_str(),
              compare(trace.at("logits"), stored("logits")).rel_rms,
              compare(trace.at("index_scores.0"), stored("index_scores.0")).rel_rms,
              overlap(trace.at("topk.0"), stored("topk.0")),
              overlap(trace.at("topk.1"), stored("topk.1")));
}

class Official : public ::testing::TestWithParam<Backend> {};

TEST_P(Official, Fp8WithPowerOfTwoScales) {
  if (!case_folder("d_fp8")) GTEST_SKIP() << "set TAMIS_FIXTURES to run d_fp8";
  const Case c("d_fp8");
  const Trace trace = trace_of(c, GetParam(), native(), official_cache());
  expect_official(c, trace, "fp8_ue8m0", GetParam());
  // It is this run and no other: the float scales of the run fp8 are further away.
  EXPECT_GT(compare(trace.at("index_scores.0"), *c.find("official.fp8.index_scores.0")).rel_rms,
            5e-3);
}

TEST_P(Official, Fp8WithFloatScales) {
  if (!case_folder("d_fp8")) GTEST_SKIP() << "set TAMIS_FIXTURES to run d_fp8";
  const Case c("d_fp8");
  const Scratch scratch;
  for (const fs::directory_entry& e : fs::directory_iterator(c.folder)) {
    if (e.is_regular_file()) fs::copy_file(e.path(), scratch.path / e.path().filename());
  }
  const std::string config = (scratch.path / "config.json").string();
  Json json = parse_json(read_text_file(config, 1 << 20), config);
  ASSERT_EQ(json["quantization_config"].erase("scale_fmt"), 1U);
  fs::remove(config);
  std::ofstream(config) << json.dump();
  const Trace trace = trace_of(c, GetParam(), native(), official_cache(), scratch.path.string());
  expect_official(c, trace, "fp8", GetParam());
}

TEST_P(Official, Bf16Weights) {
  if (!case_folder("d_fp8")) GTEST_SKIP() << "set TAMIS_FIXTURES to run d_fp8";
  const Case c("d_fp8");
  const Scratch scratch;
  const std::string out = (scratch.path / "bf16").string();
  ConvertOptions options;
  options.in = c.folder;
  options.out = out;
  options.to = NumberFormat::kBf16;
  options.threads = 1;
  convert(options);
  const Trace trace = trace_of(c, GetParam(), native(), official_cache(), out);
  expect_official(c, trace, "bf16", GetParam());
}

// The release of December 2025 passes latents through FP8 with power-of-two scales before it keeps
// them: the FP8 cache. It also takes weights_proj in float32 and rounds scores to bf16, which
// native does not, so that past the cache the limits are those of runs that round in another order.
TEST_P(Official, Fp8CacheOfDecember) {
  if (!case_folder("d_fp8")) GTEST_SKIP() << "set TAMIS_FIXTURES to run d_fp8";
  const Case c("d_fp8");
  TraceOptions cache = official_cache();
  cache.latent_format = KvFormat::kFP8;
  const Trace trace = trace_of(c, GetParam(), native(), cache);
  const auto stored = [&](const std::string& name) -> const Tensor& {
    return *c.find("official.v32dec_fp8_ue8m0." + name);
  };
  TraceTensor kept = trace.at("kv_cache.0.c_kv");  // as it goes into the cache
  pass_through_fp8(kept);
  EXPECT_LE(changed_share(kept, stored("kv_cache.0.c_kv")), 0.01);
  EXPECT_GE(changed_share(trace.at("kv_cache.0.c_kv"), stored("kv_cache.0.c_kv")), 0.5);
  EXPECT_LE(compare(trace.at("index_scores.0"), stored("index_scores.0")).rel_rms, 5e-3);
  EXPECT_GE(overlap(trace.at("topk.0"), stored("topk.0")), 0.99);
  EXPECT_GE(overlap(trace.at("topk.1"), stored("topk.1")), 0.95);
  EXPECT_LE(compare(trace.at("logits"), stored("logits")).rel_rms,
            std::max(0.15, limits_of(GetParam()).logits));
}

INSTANTIATE_TEST_SUITE_P(Backends, Official, ::testing::Values(Backend::kReference, test_backend()),
                         [](const auto& param) { return std::string(backend_name(param.param)); });

// Another order of rounding: the limits are the spread that such runs show against each other.
TEST(Native, Bf16RunOfAnotherImplementation) {
  if (!case_folder("c_bf16")) GTEST_SKIP() << "set TAMIS_FIXTURES to run c_bf16";
  const Case c("c_bf16");
  const Trace trace = trace_of(c, test_backend(), native(), official_cache());
  EXPECT_LE(compare(trace.at("index_scores.0"), *c.find("bf16.index_scores.0")).rel_rms, 8e-2);
  EXPECT_GE(overlap(trace.at("topk.0"), *c.find("bf16.topk.0")), 0.95);
  const TraceTensor& logits = trace.at("logits");
  const Tensor& want = *c.find("bf16.logits");
  EXPECT_LE(compare(logits, want).rel_rms, 0.25);
  const int64_t rows = want.shape[0], vocab = want.shape[1];
  int64_t equal = 0;
  for (int64_t r = 0; r < rows; ++r) {
    int64_t a = 0, b = 0;
    for (int64_t v = 1; v < vocab; ++v) {
      if (logits.floats[static_cast<size_t>(r * vocab + v)] >
          logits.floats[static_cast<size_t>(r * vocab + a)]) {
        a = v;
      }
      if (tensor_element(want, r * vocab + v) > tensor_element(want, r * vocab + b)) b = v;
    }
    equal += a == b;
  }
  EXPECT_GE(static_cast<double>(equal), 0.80 * static_cast<double>(rows));
}

}  // namespace
}  // namespace tamis
