// A difference of two folders written and added again, and everything that is refused.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <random>

#include "base/error.h"
#include "checkpoint/convert.h"
#include "checkpoint/difference.h"
#include "convert/folders.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

using namespace convert_test;  // NOLINT(google-build-using-namespace): this file's own helpers

struct Values {
  DType dtype;
  Shape shape;
  std::vector<float> x;
};
using Model = std::map<std::string, Values>;

const std::string kMatrix = "model.layers.0.mlp.down_proj.weight";
const std::string kWide = "model.layers.0.self_attn.o_proj.weight";
const std::string kHalf = "model.layers.0.self_attn.q_a_proj.weight";
const std::string kColumn = "model.layers.0.mlp.gate.weight";
const std::string kNorm = "model.norm.weight";
const std::string kUnknown = "somebodys.adapter";

float rounded(DType dtype, float x) {
  if (dtype == DType::kBF16) return round_to_bf16(x);
  return dtype == DType::kF16 ? f16_to_float(float_to_f16(x)) : x;
}

// Rows whose codes do not end on a byte, one column, vectors, all plain types, an unknown name.
Model base_model(std::mt19937* random) {
  Model model = {{kMatrix, {DType::kBF16, {5, 37}, {}}}, {kWide, {DType::kF32, {3, 129}, {}}},
                 {kHalf, {DType::kF16, {4, 8}, {}}},     {kColumn, {DType::kBF16, {6, 1}, {}}},
                 {kNorm, {DType::kF32, {7}, {}}},        {kUnknown, {DType::kBF16, {2, 50}, {}}}};
  std::normal_distribution<float> normal;
  for (auto& [name, tensor] : model) {
    for (int64_t i = 0; i < tensor.shape.elements(); ++i) {
      tensor.x.push_back(rounded(tensor.dtype, normal(*random)));
    }
  }
  model[kMatrix].x[3] = -300;  // beside small ones
  return model;
}

// Near the base; row 1 of kMatrix and all of kUnknown are the same.
Model target_model(const Model& base, std::mt19937* random) {
  Model model = base;
  std::normal_distribution<float> normal;
  for (auto& [name, tensor] : model) {
    if (name == kUnknown) continue;
    for (size_t i = 0; i < tensor.x.size(); ++i) {
      if (name == kMatrix && i / 37 == 1) continue;
      tensor.x[i] = rounded(tensor.dtype, tensor.x[i] + 0.03f * normal(*random));
    }
  }
  return model;
}

void save(const std::string& folder, const Model& model, const std::string& config = "{\"a\": 1}") {
  fs::create_directory(folder);
  write_file(folder + "/config.json", config);
  std::vector<TensorSpec> specs;
  for (const auto& [name, tensor] : model) specs.push_back({name, tensor.dtype, tensor.shape});
  SafetensorsWriter out(folder + "/model.safetensors", specs);
  for (const auto& [name, tensor] : model) {
    for (const float x : tensor.x) {
      const uint16_t half = tensor.dtype == DType::kBF16 ? float_to_bf16(x) : float_to_f16(x);
      if (tensor.dtype == DType::kF32) {
        out.append(std::as_bytes(std::span(&x, 1)));
      } else {
        out.append(std::as_bytes(std::span(&half, 1)));
      }
    }
  }
  out.commit();
}

// BASE and TARGET as folders, and the two directions.
class ConvertDifference : public ::testing::Test {
 protected:
  ConvertDifference() : base_(base_model(&random_)), target_(target_model(base_, &random_)) {
    save(folder_.path("base"), base_);
    save(folder_.path("target"), target_);
  }

  ConvertReport make(int bits) {
    ConvertOptions options;
    options.in = folder_.path("target");
    options.difference_from = folder_.path("base");
    options.difference_bits = bits;
    options.out = folder_.path("difference");
    options.threads = 2;
    return convert(options);
  }

  ConvertReport add(const std::string& file = "difference", int threads = 2) {
    ConvertOptions options;
    options.in = folder_.path("base");
    options.add = folder_.path(file);
    options.out = folder_.path("restored");
    options.threads = threads;
    return convert(options);
  }

  std::string file() const { return folder_.path("difference/difference.safetensors"); }

  // An InputError of one line that says all of `parts`, and no weights in the output.
  void expect_refused(const std::function<void()>& body, const std::vector<std::string>& parts) {
    try {
      body();
      ADD_FAILURE() << "accepted";
    } catch (const InputError& e) {
      const std::string text = e.what();
      EXPECT_EQ(text.find('\n'), std::string::npos) << text;
      for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << text;
    }
    for (const char* out : {"restored", "difference"}) {
      if (!fs::exists(folder_.path(out))) continue;
      for (const auto& [name, text] : contents(folder_.path(out))) {
        EXPECT_TRUE(name == "tamis-convert.json" || name == kDifferenceName) << name;
      }
    }
  }

  std::mt19937 random_{11};
  Model base_, target_;
  const TemporaryFolder folder_{fast_parent()};
};

TEST_F(ConvertDifference, RestoredIsTheBaseAndTheCodesOfTheFile) {
  for (int bits = 1; bits <= 8; ++bits) {
    SCOPED_TRACE(std::to_string(bits) + " bits");
    const ConvertReport report = make(bits);
    add();
    const SafetensorsFile difference(file());
    const Checkpoint restored = Checkpoint::open(folder_.path("restored"));
    EXPECT_EQ(restored.entries().size(), base_.size());
    for (const auto& [name, want] : target_) {
      const Tensor found = restored.tensor(name);
      ASSERT_TRUE(found.shape == want.shape && found.dtype == want.dtype) << name;
      const TensorInfo* scales = difference.find(name + "_scale");
      EXPECT_EQ(difference.find(name) == nullptr, name == kUnknown)
          << "only what differs is stored";
      double squares = 0;
      for (size_t i = 0; i < want.x.size(); ++i) {
        const int64_t at = static_cast<int64_t>(i), columns = want.shape[want.shape.rank() - 1];
        const double x = tensor_element(found, at), off = std::fabs(x - want.x[i]);
        squares += off * off;
        if (scales == nullptr) {
          ASSERT_EQ(off, 0) << name;
          continue;
        }
        // The code by hand, bit by bit.
        const float scale = tensor_element(difference.tensor(*scales), at / columns);
        const TensorInfo* codes = difference.find(name);
        const std::byte* row = difference.tensor(*codes).data + at / columns * codes->shape[1];
        int code = 0;
        for (int64_t k = 0, bit = at % columns * bits; k < bits; ++k, ++bit) {
          code |= (std::to_integer<int>(row[bit / 8]) >> (bit % 8) & 1) << k;
        }
        const float value = static_cast<float>(2 * code + 1 - (1 << bits)) * scale;
        ASSERT_EQ(static_cast<float>(x), rounded(want.dtype, base_.at(name).x[i] + value)) << name;
        if (name == kMatrix && at / columns == 1) {
          ASSERT_EQ(off, 0) << "a row without a difference";
        }
      }
      if (name == kWide) {
        double weights = 0;
        for (const float w : want.x) weights += static_cast<double>(w) * w;
        EXPECT_NEAR(report.errors.at("self_attn.o_proj.weight").relative_rms(),
                    std::sqrt(squares / weights), 1e-12);
      }
    }
    EXPECT_EQ(difference.find(kColumn + "_scale"), nullptr) << "packing it would save nothing";
    fs::remove_all(folder_.path("difference"));
    fs::remove_all(folder_.path("restored"));
  }
}

TEST_F(ConvertDifference, ThreadsAndShardsOfTheBaseDoNotChangeABit) {
  make(2);
  add("difference", 1);
  const auto want = contents(folder_.path("restored"));
  fs::remove_all(folder_.path("restored"));
  add("difference/difference.safetensors", 3);  // the file instead of its folder
  EXPECT_TRUE(contents(folder_.path("restored")) == want);
  EXPECT_EQ(add("difference", 3).files_resumed, 1);
  // The base in files of another cut, and itself restored: 8 bits of a difference of nothing.
  const std::string before = weights_checksum(Checkpoint::open(folder_.path("base")));
  Model changed = base_;
  changed[kNorm].x[0] += 1;
  save(folder_.path("changed"), changed);
  EXPECT_NE(weights_checksum(Checkpoint::open(folder_.path("changed"))), before);
  ConvertOptions shards;
  shards.in = folder_.path("base");
  shards.add = folder_.path("none.safetensors");
  shards.out = folder_.path("shards");
  shards.shard_bytes = 300;
  SafetensorsWriter none(
      shards.add, {},
      {{"format", "tamis-difference"}, {"version", "1"}, {"bits", "8"}, {"base_xxh3_128", before}});
  none.commit();
  EXPECT_GE(convert(shards).files, 3);
  EXPECT_EQ(weights_checksum(Checkpoint::open(shards.out)), before);
}

TEST_F(ConvertDifference, AnotherBaseIsRefused) {
  make(2);
  Model other = base_;
  other[kHalf].x[5] = -other[kHalf].x[5];
  fs::remove_all(folder_.path("base"));
  save(folder_.path("base"), other);
  expect_refused([&] { add(); }, {folder_.path("base"), "other weights", "--difference-from"});
}

TEST_F(ConvertDifference, FoldersOfTwoShapesAreRefused) {
  const auto with = [&](const std::function<void(Model*)>& change, const std::string& part) {
    Model other = target_;
    change(&other);
    fs::remove_all(folder_.path("target"));
    save(folder_.path("target"), other);
    expect_refused([&] { make(2); }, {folder_.path("target"), part});
  };
  with([](Model* m) { m->erase(kWide); }, "\"" + kWide + "\": missing");
  with([](Model* m) { (*m)["more"] = (*m)[kNorm]; }, "\"more\": not in");
  with([](Model* m) { (*m)[kHalf].shape = {8, 4}; }, "F16 [8,4], but F16 [4,8]");
  with([](Model* m) { (*m)[kHalf].dtype = DType::kBF16; }, "BF16 [4,8], but F16 [4,8]");
  with([](Model* m) { (*m)[kWide].x[130] = std::nanf(""); }, "[1,1]: the difference is not finite");
  with([](Model* m) { (*m)[kNorm].x[2] = INFINITY; }, "element 2 is not finite");
  with([this](Model* m) { *m = base_; }, "no difference");
  save(folder_.path("target2"), target_, "{\"a\": 2}");
  fs::remove_all(folder_.path("target"));
  fs::rename(folder_.path("target2"), folder_.path("target"));
  expect_refused([&] { make(2); }, {"\"a\" differs"});
}

// One scale for a row: beside steps of 30000, one of 5504 goes past the largest F16.
TEST_F(ConvertDifference, AValueThatWouldOverflowIsRefused) {
  base_[kHalf].x.assign(32, 0);
  base_[kHalf].x[8] = 60000;
  target_[kHalf].x.assign(32, 30000);
  target_[kHalf].x[8] = 65504;
  for (const char* name : {"base", "target"}) fs::remove_all(folder_.path(name));
  save(folder_.path("base"), base_);
  save(folder_.path("target"), target_);
  expect_refused([&] { make(1); }, {kHalf, "[1,0]", "more --bits"});
  fs::remove_all(folder_.path("difference"));
  make(8);
}

TEST_F(ConvertDifference, DamagedFilesAreRefused) {
  make(2);
  const std::string whole = read_file(file());
  const SafetensorsFile parsed(file());
  const auto data_of = [&](const std::string& name) {
    return static_cast<size_t>(parsed.header().header_bytes + parsed.find(name)->offset);
  };
  const auto with = [&](const std::function<void(std::string*)>& change, const std::string& part) {
    std::string damaged = whole;
    change(&damaged);
    fs::remove_all(folder_.path("difference"));
    fs::create_directory(folder_.path("difference"));
    write_file(file(), damaged);
    expect_refused([&] { add(); }, {file(), part});
  };
  const auto replace = [](const std::string& from, const std::string& to) {
    return [from, to](std::string* text) {
      const size_t at = text->find(from);
      ASSERT_NE(at, std::string::npos) << from;
      text->replace(at, from.size(), to);
    };
  };
  const size_t scale = data_of(kWide + "_scale");
  for (const size_t cut : {size_t{0}, size_t{7}, size_t{100}, whole.size() - 1}) {
    with([cut](std::string* text) { text->resize(cut); }, "");
  }
  with([scale](std::string* text) { (*text)[scale + 1] = '\x7F', (*text)[scale] = '\xC0'; },
       "element [0] is not a finite");
  with([scale](std::string* text) { (*text)[scale + 1] = '\xBF'; }, "element [0] is not a finite");
  with(replace("tamis-difference", "tamis-indifference"), "");  // lengthens the header
  with(replace("tamis-difference", "somes-difference"), "not a difference");
  with(replace("\"bits\":\"2\"", "\"bits\":\"9\""), "bits \"9\"");
  with(replace("\"bits\":\"2\"", "\"bits\":\"3\""), "want U8");
  with(replace("\"version\":\"1\"", "\"version\":\"2\""), "version \"2\"");
  with(replace("model.norm", "model.n0rm"), "not of");
}

}  // namespace
}  // namespace tamis
