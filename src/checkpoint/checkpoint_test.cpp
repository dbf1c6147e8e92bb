#include "checkpoint/checkpoint.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "tamis-ckpt-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    text("config.json", R"({"model_type":"deepseek_v32"})");
  }
  void TearDown() override { fs::remove_all(folder_); }

  void text(const std::string& name, const std::string& contents) const {
    std::ofstream(folder_ + "/" + name, std::ios::binary) << contents;
  }
  // Writes a shard whose bytes are all `fill`.
  void shard(const std::string& name, const std::vector<TensorSpec>& specs, char fill = 1) const {
    SafetensorsWriter writer(folder_ + "/" + name, specs);
    const std::string data(static_cast<size_t>(writer.data_bytes()), fill);
    writer.append(std::as_bytes(std::span(data)));
    writer.commit();
  }
  std::string error() const {
    try {
      Checkpoint::open(folder_);
    } catch (const InputError& e) {
      return e.what();
    }
    return "accepted";
  }
  void expect_error(const std::string& part) const {
    const std::string message = error();
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }

  std::string folder_;
};

TEST_F(CheckpointTest, SingleFile) {
  shard("model.safetensors", {{"w", DType::kF32, Shape{2}}, {"v", DType::kU8, Shape{3}}}, 2);
  shard("trace.safetensors", {{"w", DType::kU8, Shape{1}}});  // not a weight file
  fs::create_directory(folder_ + "/expected");
  shard("expected/model.safetensors", {{"x", DType::kU8, Shape{1}}});
  const Checkpoint c = Checkpoint::open(folder_);
  EXPECT_EQ(c.config_text(), R"({"model_type":"deepseek_v32"})");
  EXPECT_TRUE(c.contains("w"));
  EXPECT_FALSE(c.contains("x"));
  EXPECT_EQ(c.tensor("v").data[2], std::byte{2});
  EXPECT_EQ(c.total_bytes(), 11);
  EXPECT_EQ(c.entries().size(), 2u);
  EXPECT_EQ(c.shard_name(0), "model.safetensors");
  try {
    c.tensor("lm_head.weight");
    FAIL();
  } catch (const InputError& e) {
    EXPECT_NE(std::string(e.what()).find(folder_), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("lm_head.weight"), std::string::npos);
  }
  c.check_unchanged();
}

TEST_F(CheckpointTest, Shards) {
  shard("model-1.safetensors", {{"a", DType::kU8, Shape{1}}}, 5);
  shard("model-2.safetensors", {{"b", DType::kU8, Shape{2}}}, 6);
  text(
      "model.safetensors.index.json",
      R"({"metadata":{"total_size":3},"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}})");
  Checkpoint c = Checkpoint::open(folder_);
  const Checkpoint moved = std::move(c);  // views into it stay good
  EXPECT_EQ(moved.tensor("a").data[0], std::byte{5});
  EXPECT_EQ(moved.tensor("b").data[1], std::byte{6});
  EXPECT_EQ(moved.shards().size(), 2u);
}

TEST_F(CheckpointTest, WhatIsMissingIsNamed) {
  expect_error("neither model.safetensors nor model.safetensors.index.json");
  fs::remove(folder_ + "/config.json");
  expect_error("no config.json");
  fs::remove_all(folder_);
  expect_error("not a folder");
}

TEST_F(CheckpointTest, ShardsWithoutIndex) {
  shard("model-00001-of-00002.safetensors", {{"a", DType::kU8, Shape{1}}});
  expect_error("neither");
  shard("model.safetensors", {{"a", DType::kU8, Shape{1}}});
  expect_error("model-00001-of-00002.safetensors");
}

TEST_F(CheckpointTest, AFileThatShrinksIsReported) {
  shard("model.safetensors", {{"w", DType::kF32, Shape{4096}}});
  const Checkpoint c = Checkpoint::open(folder_);
  c.check_unchanged();
  fs::resize_file(folder_ + "/model.safetensors", 100);
  try {
    c.check_unchanged();
    FAIL();
  } catch (const InputError& e) {
    EXPECT_NE(std::string(e.what()).find("model.safetensors"), std::string::npos);
  }
}

TEST_F(CheckpointTest, LargeCheckpointOpensFast) {
  // As many tensors as a 61-layer model with 256 experts; two bytes each, so only names count.
  std::string index = R"({"weight_map":{)";
  for (int s = 0; s < 10; ++s) {
    std::vector<TensorSpec> specs;
    const std::string name = "model-" + std::to_string(s) + ".safetensors";
    for (int i = 0; i < 4500; ++i) {
      specs.push_back({"model.layers." + std::to_string(s) + ".mlp.experts." + std::to_string(i) +
                           ".gate_proj.weight",
                       DType::kBF16, Shape{1, 1}});
      index += (s + i == 0 ? "\"" : ",\"") + specs.back().name + "\":\"" + name + "\"";
    }
    shard(name, specs);
  }
  text("model.safetensors.index.json", index + "}}");
  // Processor time: other programs of the machine must not decide the result.
  const std::clock_t start = std::clock();
  const Checkpoint c = Checkpoint::open(folder_);
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  EXPECT_EQ(c.entries().size(), 45000u);
  EXPECT_LT(seconds, 1.0);
  RecordProperty("open_ms", static_cast<int>(seconds * 1000));
}

TEST(CheckpointFixtureTest, PublicCheckpointsOpen) {
  const char* fixtures = std::getenv("TAMIS_FIXTURES");
  if (fixtures == nullptr) GTEST_SKIP() << "TAMIS_FIXTURES is not set";
  int opened = 0;
  for (const auto& entry : fs::directory_iterator(fixtures)) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    const Checkpoint c = Checkpoint::open(entry.path().string());
    c.check_scales();
    EXPECT_GT(c.entries().size(), 50u) << entry.path();
    ++opened;
  }
  EXPECT_GT(opened, 0);
}

}  // namespace
}  // namespace tamis
