// Number formats: whole checkpoints through `convert`, read back by the kernels' definition.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/convert.h"
#include "checkpoint/manifest.h"
#include "checkpoint/quantise.h"
#include "checkpoint/tensor_roles.h"
#include "convert/folders.h"
#include "kernels/quantize_fp8/quantize_fp8.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

using namespace convert_test;  // NOLINT(google-build-using-namespace): this file's own helpers

ConvertOptions options_for(const std::string& in, const std::string& out, NumberFormat to) {
  ConvertOptions options;
  options.in = in;
  options.out = out;
  options.to = to;
  options.threads = 2;
  return options;
}

std::vector<float> row_of(const Weight& w, int64_t row) {
  std::vector<float> out(static_cast<size_t>(w.cols));
  dequantize_row(w, row, 0, w.cols, out.data());
  return out;
}

// Largest |stored - w| that a format allows at one element.
double bound(NumberFormat to, const Weight& stored, int64_t row, int64_t col, double w) {
  constexpr double kFloat = 1.0 + 1e-5;  // float rounding of the quotient and of the product
  const auto scale = [&](int64_t i) {
    float f32 = 0;
    uint16_t bf16 = 0;
    if (stored.scale_dtype == DType::kF32) {
      std::memcpy(&f32, stored.scales + 4 * i, 4);
      return static_cast<double>(f32);
    }
    std::memcpy(&bf16, stored.scales + 2 * i, 2);
    return static_cast<double>(bf16_to_float(bf16));
  };
  if (to == NumberFormat::kBf16) return std::fabs(w) / 256;  // 8 bits of precision, half an ulp
  if (to == NumberFormat::kFp8) {
    // 4 bits of precision; below 2^-6 the step is 2^-9. Both are in units of the scale.
    const double s = scale(row / kFp8Block * stored.scale_stride + col / kFp8Block);
    return std::max(std::fabs(w) / 16, s * std::ldexp(1, -10)) * kFloat;
  }
  return scale(row * stored.scale_stride + col / kIntGroup) / 2 * kFloat;
}

void expect_close(const std::string& model, const std::string& out, NumberFormat to) {
  const Checkpoint want = Checkpoint::open(model), found = Checkpoint::open(out);
  int64_t changed = 0;
  for (const Checkpoint::Entry& entry : want.entries()) {
    TensorPlace place;
    const TensorRole* role = role_of(entry.info->name, &place);
    ASSERT_NE(role, nullptr);
    if (place.part != TensorPlace::Part::kTensor) continue;
    const TensorInfo* info = found.find(entry.info->name);
    ASSERT_NE(info, nullptr) << entry.info->name;
    const NumberFormat format = stored_format(found, *info);
    const bool narrow = to == NumberFormat::kFp8    ? role->to_fp8
                        : to == NumberFormat::kInt8 ? role->to_int8()
                                                    : role->to_int4();
    EXPECT_EQ(format, to != NumberFormat::kBf16 && narrow ? to : NumberFormat::kKeep);
    if (format == NumberFormat::kKeep && info->dtype == entry.info->dtype) {
      EXPECT_TRUE(bytes_of(found.tensor(info->name)) == bytes_of(want.tensor(info->name)));
      continue;
    }
    ++changed;
    const StoredWeight a(want, info->name), b(found, info->name);
    ASSERT_EQ(a.view().rows, b.view().rows);
    ASSERT_EQ(a.view().cols, b.view().cols);
    const NumberFormat now = format == NumberFormat::kKeep ? NumberFormat::kBf16 : format;
    for (int64_t row = 0; row < a.view().rows; ++row) {
      const std::vector<float> x = row_of(a.view(), row), y = row_of(b.view(), row);
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_LE(std::fabs(static_cast<double>(x[i]) - static_cast<double>(y[i])),
                  bound(now, b.view(), row, static_cast<int64_t>(i), x[i]))
            << info->name << " [" << row << "," << i << "]";
      }
    }
  }
  EXPECT_GT(changed, 0);
}

bool is_fp8(const std::string& model) { return model.find("fp8") != std::string::npos; }
bool is_bf16(const std::string& model) {
  return model.find("bf16") != std::string::npos || model == mini();
}

TEST(ConvertQuantise, EveryModelInEveryFormatIsWithinItsBound) {
  for (const std::string& model : models()) {
    for (const auto to :
         {NumberFormat::kBf16, NumberFormat::kFp8, NumberFormat::kInt8, NumberFormat::kInt4}) {
      SCOPED_TRACE(model + " to " + std::to_string(static_cast<int>(to)));
      const TemporaryFolder folder;
      const ConvertOptions options = options_for(model, folder.path("out"), to);
      if ((to == NumberFormat::kFp8 && is_fp8(model)) ||
          (to == NumberFormat::kBf16 && is_bf16(model))) {
        EXPECT_THROW(convert(options), InputError);  // nothing to do
        continue;
      }
      const ConvertReport report = convert(options);
      EXPECT_FALSE(report.errors.empty());
      expect_close(model, options.out, to);
    }
  }
}

// FP8 to bf16 is the kernels' dequantised row, rounded to bf16.
TEST(ConvertQuantise, Fp8ToBf16IsTheDefinition) {
  const TemporaryFolder folder;
  convert(options_for(mini(), folder.path("fp8"), NumberFormat::kFp8));
  convert(options_for(folder.path("fp8"), folder.path("bf16"), NumberFormat::kBf16));
  const Checkpoint fp8 = Checkpoint::open(folder.path("fp8"));
  const Checkpoint bf16 = Checkpoint::open(folder.path("bf16"));
  const std::string name = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight";
  const StoredWeight stored(fp8, name), plain(bf16, name);
  for (int64_t row = 0; row < stored.view().rows; ++row) {
    std::vector<float> want = row_of(stored.view(), row);
    for (float& x : want) x = round_to_bf16(x);
    EXPECT_EQ(row_of(plain.view(), row), want);
  }
  EXPECT_EQ(bf16.find(name + "_scale_inv"), nullptr);
  const Json config = parse_json(bf16.config_text(), "config");
  EXPECT_FALSE(config.contains("quantization_config"));
}

TEST(ConvertQuantise, Fp8IsTheKernelsBlockQuantiser) {
  for (const bool ue8m0 : {false, true}) {
    const TemporaryFolder folder;
    ConvertOptions options = options_for(mini(), folder.path("fp8"), NumberFormat::kFp8);
    options.power_of_two_scales = ue8m0;
    convert(options);
    const Checkpoint source = Checkpoint::open(mini()), fp8 = Checkpoint::open(options.out);
    // 576 rows: the last block has 64.
    const std::string name = "model.layers.2.self_attn.kv_a_proj_with_mqa.weight";
    const StoredWeight stored(source, name);
    const int64_t rows = stored.view().rows, cols = stored.view().cols;
    std::vector<float> w;
    for (int64_t row = 0; row < rows; ++row) {
      const std::vector<float> x = row_of(stored.view(), row);
      w.insert(w.end(), x.begin(), x.end());
    }
    std::string q(w.size(), '\0');
    std::vector<float> scales(static_cast<size_t>(5 * 2));
    ASSERT_EQ(rows, 576);
    ASSERT_EQ(cols, 256);
    block_quant(w.data(), rows, cols, ue8m0, reinterpret_cast<uint8_t*>(q.data()), scales.data());
    EXPECT_TRUE(bytes_of(fp8.tensor(name)) == q);
    const Tensor stored_scales = fp8.tensor(name + "_scale_inv");
    EXPECT_TRUE(bytes_of(stored_scales) ==
                std::string(reinterpret_cast<const char*>(scales.data()), 40));
    const Json config = parse_json(fp8.config_text(), "config")["quantization_config"];
    EXPECT_EQ(config["quant_method"], "fp8");
    EXPECT_EQ(config.contains("scale_fmt"), ue8m0);
  }
}

// The published vectors, byte for byte, through a checkpoint of one weight.
TEST(ConvertQuantise, UnitVectors) {
  const char* fixtures = std::getenv("TAMIS_FIXTURES");
  if (fixtures == nullptr) GTEST_SKIP() << "TAMIS_FIXTURES is not set";
  const SafetensorsFile units(std::string(fixtures) + "/units/expected/expected.safetensors");
  const Tensor w = units.tensor(*units.find("block_quant.w"));
  const std::string name = "model.layers.0.self_attn.q_a_proj.weight";
  for (const bool ue8m0 : {false, true}) {
    const TemporaryFolder folder;
    fs::create_directory(folder.path("in"));
    write_file(folder.path("in/config.json"), "{}");
    const std::vector<TensorSpec> specs = {{name, w.dtype, w.shape}};
    SafetensorsWriter out(folder.path("in/model.safetensors"), specs);
    out.append({w.data, static_cast<size_t>(w.bytes())});
    out.commit();
    ConvertOptions options = options_for(folder.path("in"), folder.path("out"), NumberFormat::kFp8);
    options.power_of_two_scales = ue8m0;
    convert(options);
    const std::string prefix = ue8m0 ? "block_quant.ue8m0." : "block_quant.plain.";
    const Checkpoint found = Checkpoint::open(options.out);
    EXPECT_TRUE(bytes_of(found.tensor(name)) == bytes_of(units.tensor(*units.find(prefix + "q"))));
    EXPECT_TRUE(bytes_of(found.tensor(name + "_scale_inv")) ==
                bytes_of(units.tensor(*units.find(prefix + "s"))));
    const Tensor dequant = units.tensor(*units.find(prefix + "dequant"));
    const StoredWeight stored(found, name);
    for (int64_t row = 0; row < stored.view().rows; ++row) {
      const std::vector<float> x = row_of(stored.view(), row);
      for (size_t i = 0; i < x.size(); ++i) {
        const int64_t at = row * stored.view().cols + static_cast<int64_t>(i);
        ASSERT_EQ(x[i], tensor_element(dequant, at));
      }
    }
  }
}

TEST(ConvertQuantise, ThreadsDoNotChangeABit) {
  const TemporaryFolder folder;
  ConvertOptions one = options_for(mini(), folder.path("one"), NumberFormat::kInt4);
  one.threads = 1;
  ConvertOptions three = options_for(mini(), folder.path("three"), NumberFormat::kInt4);
  three.threads = 3;
  const ConvertReport a = convert(one), b = convert(three);
  EXPECT_TRUE(contents(one.out) == contents(three.out));
  for (const auto& [kind, error] : a.errors) {
    EXPECT_EQ(error.relative_rms(), b.errors.at(kind).relative_rms()) << kind;
  }
}

TEST(ConvertQuantise, ReportedErrorIsWhatAReaderSees) {
  const TemporaryFolder folder;
  const ConvertOptions options = options_for(mini(), folder.path("out"), NumberFormat::kInt8);
  const ConvertReport report = convert(options);
  const Checkpoint want = Checkpoint::open(mini()), found = Checkpoint::open(options.out);
  const std::string name = "model.layers.0.mlp.down_proj.weight";  // the only one of its kind
  const StoredWeight a(want, name), b(found, name);
  double error = 0, weight = 0;
  for (int64_t row = 0; row < a.view().rows; ++row) {
    const std::vector<float> x = row_of(a.view(), row), y = row_of(b.view(), row);
    for (size_t i = 0; i < x.size(); ++i) {
      error += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
      weight += std::pow(static_cast<double>(x[i]), 2);
    }
  }
  EXPECT_NEAR(report.errors.at("mlp.down_proj.weight").relative_rms(), std::sqrt(error / weight),
              1e-12);
}

TEST(ConvertQuantise, NotFiniteIsRefusedByName) {
  const TemporaryFolder folder;
  fs::create_directory(folder.path("in"));
  write_file(folder.path("in/config.json"), "{}");
  const std::string name = "model.layers.0.self_attn.q_a_proj.weight";
  std::vector<float> w(2 * 64, 1.0f);
  w[64 + 33] = std::nanf("");
  const std::vector<TensorSpec> specs = {{name, DType::kF32, {2, 64}}};
  SafetensorsWriter out(folder.path("in/model.safetensors"), specs);
  out.append(std::as_bytes(std::span(w)));
  out.commit();
  for (const auto to : {NumberFormat::kFp8, NumberFormat::kInt8, NumberFormat::kInt4}) {
    try {
      convert(options_for(folder.path("in"), folder.path("out"), to));
      ADD_FAILURE() << "accepted";
    } catch (const InputError& e) {
      EXPECT_NE(std::string(e.what()).find(name), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find("[1,33]"), std::string::npos) << e.what();
    }
    for (const auto& [file, text] : contents(folder.path("out"))) {
      EXPECT_EQ(file, "tamis-convert.json");
    }
    fs::remove_all(folder.path("out"));
  }
}

TEST(ConvertQuantise, ShardsIndexAndManifestAgree) {
  const TemporaryFolder folder;
  ConvertOptions options = options_for(mini(), folder.path("out"), NumberFormat::kInt8);
  options.shard_bytes = 2'000'000;
  options.manifest = true;
  const ConvertReport report = convert(options);
  EXPECT_GE(report.files, 5);
  const Checkpoint found = Checkpoint::open(options.out);
  EXPECT_EQ(found.total_bytes(), report.bytes);
  const auto differences = compare_manifests(load_manifest(options.out),
                                             compute_manifest(found, [](int64_t, int64_t) {}));
  EXPECT_TRUE(differences.empty());
}

}  // namespace
}  // namespace tamis
