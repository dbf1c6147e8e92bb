#include "checkpoint/manifest.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "checkpoint/checksum.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

// Published vectors of XXH3-128 with seed 0.
TEST(ChecksumTest, KnownValues) {
  EXPECT_EQ(checksum_hex({}), "99aa06d3014798d86001c324468d497f");
  const std::string text(3000, 'a');
  Checksum pieces;
  for (size_t at = 0; at < text.size(); at += 7) {
    pieces.update(std::as_bytes(std::span(text)).subspan(at, std::min<size_t>(7, 3000 - at)));
  }
  EXPECT_EQ(pieces.hex(), checksum_hex(std::as_bytes(std::span(text))));
}

class ManifestTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "tamis-manifest-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    std::ofstream(folder_ + "/config.json") << "{}";
    const std::vector<TensorSpec> specs = {{"a", DType::kF32, Shape{2, 3}},
                                           {"none", DType::kF32, Shape{0}},
                                           {"b.weight", DType::kBF16, Shape{5}}};
    SafetensorsWriter writer(weights(), specs);
    std::string data(static_cast<size_t>(writer.data_bytes()), '\0');
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i);
    writer.append(std::as_bytes(std::span(data)));
    writer.commit();
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string weights() const { return folder_ + "/model.safetensors"; }
  Manifest compute() const {
    return compute_manifest(Checkpoint::open(folder_), [](int64_t, int64_t) {});
  }
  void flip(int64_t bit) const {
    std::fstream file(weights(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(bit / 8);
    const char byte = static_cast<char>(file.get() ^ (1 << (bit % 8)));
    file.seekp(bit / 8);
    file.put(byte);
  }

  std::string folder_;
};

TEST_F(ManifestTest, SavedLoadedEqual) {
  int64_t last = 0, total = -1;
  const Manifest manifest =
      compute_manifest(Checkpoint::open(folder_), [&](int64_t done, int64_t all) {
        EXPECT_GT(done, last);
        last = done;
        total = all;
      });
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, static_cast<int64_t>(fs::file_size(weights())) + 2);
  save_manifest(folder_, manifest);
  EXPECT_TRUE(compare_manifests(load_manifest(folder_), compute()).empty());
  EXPECT_EQ(manifest.files.size(), 2u);
  EXPECT_EQ(manifest.tensors.at("none").bytes, 0);
}

TEST_F(ManifestTest, EveryFlippedBitOfTheDataNamesItsTensor) {
  const Manifest want = compute();
  const Checkpoint checkpoint = Checkpoint::open(folder_);
  const SafetensorsHeader& header = checkpoint.shards()[0].header();
  for (const TensorInfo& info : header.tensors) {
    for (int64_t bit = 0; bit < info.bytes * 8; ++bit) {
      const int64_t at = (header.header_bytes + info.offset) * 8 + bit;
      flip(at);
      const auto differences = compare_manifests(want, compute());
      flip(at);
      ASSERT_EQ(differences.size(), 1u) << info.name << " bit " << bit;
      EXPECT_NE(differences[0].find("tensor \"" + info.name + "\" differs"), std::string::npos);
    }
  }
}

TEST_F(ManifestTest, EveryFlippedBitOfTheHeaderIsFound) {
  const Manifest want = compute();
  const int64_t bits = Checkpoint::open(folder_).shards()[0].header().header_bytes * 8;
  for (int64_t bit = 0; bit < bits; ++bit) {
    flip(bit);
    try {
      EXPECT_FALSE(compare_manifests(want, compute()).empty()) << bit;
    } catch (const InputError&) {
      // Most flips break a rule of the header; the rest must change its checksum.
    }
    flip(bit);
  }
  EXPECT_TRUE(compare_manifests(want, compute()).empty());
}

TEST_F(ManifestTest, FilesThatComeGoOrChange) {
  const Manifest want = compute();
  std::ofstream(folder_ + "/tokenizer.json") << "{}";
  auto differences = compare_manifests(want, compute());
  ASSERT_EQ(differences.size(), 1u);
  EXPECT_EQ(differences[0], "file \"tokenizer.json\" is not in the manifest");
  differences = compare_manifests(compute(), want);
  ASSERT_EQ(differences.size(), 1u);
  EXPECT_EQ(differences[0], "file \"tokenizer.json\" is missing");
  fs::remove(folder_ + "/tokenizer.json");
  std::ofstream(folder_ + "/config.json") << "[]";
  EXPECT_EQ(compare_manifests(want, compute()).size(), 1u);
  std::ofstream(folder_ + "/config.json") << "{ }";
  EXPECT_NE(compare_manifests(want, compute()).at(0).find("3 bytes, the manifest says 2"),
            std::string::npos);
}

TEST_F(ManifestTest, MalformedManifestsAreRefused) {
  const char* bad[] = {
      "",
      "[]",
      "{}",
      R"({"format":"other"})",
      R"({"format":"tamis-manifest","version":2,"hash":"xxh3-128","files":{},"tensors":{}})",
      R"({"format":"tamis-manifest","version":1,"hash":"md5","files":{},"tensors":{}})",
      R"({"format":"tamis-manifest","version":1,"hash":"xxh3-128","files":[],"tensors":{}})",
      R"({"format":"tamis-manifest","version":1,"hash":"xxh3-128","files":{}})",
      R"({"format":"tamis-manifest","version":1,"hash":"xxh3-128","files":{"a":1},"tensors":{}})",
      R"({"format":"tamis-manifest","version":1,"hash":"xxh3-128","files":{"a":{"bytes":-1,"checksum":"x"}},"tensors":{}})",
      R"({"format":"tamis-manifest","version":1,"hash":"xxh3-128","files":{},"tensors":{"a":{"bytes":1,"checksum":"x"}}})",
  };
  for (const char* text : bad) EXPECT_THROW(parse_manifest(text, "m"), InputError) << text;
  EXPECT_THROW(load_manifest(folder_), InputError);
  const Manifest empty = parse_manifest(
      R"({"format":"tamis-manifest","version":1,"hash":"xxh3-128","files":{},"tensors":{}})", "m");
  EXPECT_TRUE(empty.tensors.empty());
}

}  // namespace
}  // namespace tamis
