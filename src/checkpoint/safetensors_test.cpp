#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

// A header of this JSON in front of `data` bytes of data.
SafetensorsHeader parse(const std::string& json, int64_t data) {
  std::string text(8, '\0');
  for (size_t i = 0; i < 8; ++i) text[i] = static_cast<char>(json.size() >> (8 * i) & 0xFF);
  text += json;
  return parse_safetensors_header(bytes_of(text), static_cast<int64_t>(text.size()) + data, "f");
}

class SafetensorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "tamis-st-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    path_ = folder_ + "/a.safetensors";
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string folder_, path_;
};

TEST(SafetensorsHeaderTest, EscapesAndOrder) {
  const SafetensorsHeader h = parse(
      R"({"b":{"shape":[2,3],"data_offsets":[4,16],"dtype":"BF16"},"__metadata__":{"a\n":"\ud83d\ude00"},)"
      R"( "a\u00e9":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   )",
      16);
  ASSERT_EQ(h.tensors.size(), 2u);
  EXPECT_EQ(h.tensors[0].name, "a\u00e9");
  EXPECT_EQ(h.tensors[0].shape.rank(), 0);
  EXPECT_EQ(h.tensors[0].bytes, 4);
  EXPECT_EQ(h.tensors[1].name, "b");
  EXPECT_EQ(h.tensors[1].dtype, DType::kBF16);
  EXPECT_EQ(h.tensors[1].shape, Shape({2, 3}));
  EXPECT_EQ(h.tensors[1].offset, 4);
  EXPECT_EQ(h.metadata.at("a\n"), "\U0001F600");
}

TEST(SafetensorsHeaderTest, EmptyFileAndEmptyTensors) {
  EXPECT_TRUE(parse("{}", 0).tensors.empty());
  const SafetensorsHeader h = parse(R"({"x":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                                    R"("e":{"dtype":"F32","shape":[0,7],"data_offsets":[3,3]},)"
                                    R"("d":{"dtype":"F32","shape":[2,0],"data_offsets":[0,0]}})",
                                    3);
  ASSERT_EQ(h.tensors.size(), 3u);
  EXPECT_EQ(h.tensors[0].name, "d");
  EXPECT_EQ(h.tensors[2].name, "e");
}

TEST_F(SafetensorsTest, WriterAndReaderAgree) {
  const std::vector<TensorSpec> specs = {{"b", DType::kF32, Shape{2, 2}},
                                         {"empty", DType::kBF16, Shape{0, 4}},
                                         {"a", DType::kU8, Shape{3}}};
  const std::string b("0123456789abcdef"), a("xyz");
  SafetensorsWriter writer(path_, specs, {{"format", "pt"}});
  EXPECT_THROW(writer.append_tensor("a", bytes_of(a)), UsageError);
  writer.append_tensor("b", bytes_of(b));
  writer.append_tensor("empty", {});
  EXPECT_THROW(writer.commit(), UsageError);
  writer.append(bytes_of(a).first(1));
  writer.append(bytes_of(a).subspan(1));
  EXPECT_THROW(writer.append(bytes_of(a)), UsageError);
  EXPECT_FALSE(fs::exists(path_));
  writer.commit();

  const SafetensorsFile file(path_);
  EXPECT_EQ(file.header().header_bytes % 64, 0);
  EXPECT_EQ(file.header().metadata.at("format"), "pt");
  ASSERT_NE(file.find("a"), nullptr);
  EXPECT_EQ(file.find("c"), nullptr);
  const Tensor t = file.tensor(*file.find("b"));
  EXPECT_EQ(t.shape, Shape({2, 2}));
  EXPECT_EQ(std::memcmp(t.data, b.data(), b.size()), 0);
  EXPECT_EQ(std::memcmp(file.tensor(*file.find("a")).data, a.data(), a.size()), 0);
  EXPECT_EQ(file.tensor(*file.find("empty")).bytes(), 0);
}

TEST_F(SafetensorsTest, WriterRefusesWhatTheReaderWould) {
  const auto open = [&](const std::vector<TensorSpec>& specs) {
    SafetensorsWriter w(path_, specs);
  };
  EXPECT_THROW(open({{"a", DType::kU8, Shape{1}}, {"a", DType::kU8, Shape{1}}}), UsageError);
  EXPECT_THROW(open({{"", DType::kU8, Shape{1}}}), UsageError);
  EXPECT_THROW(open({{"../a", DType::kU8, Shape{1}}}), UsageError);
  EXPECT_THROW(open({{"\xff", DType::kU8, Shape{1}}}), UsageError);
  EXPECT_THROW(open({{"a", DType::kF64, Shape{INT64_MAX / 8}}}), UsageError);
  EXPECT_THROW(open({{"a", DType::kU8, Shape{-1}}}), UsageError);
  EXPECT_THROW(open({{"a", DType::kI4, Shape{3}}}), UsageError);
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(SafetensorsTest, NotARegularFile) {
  EXPECT_THROW(SafetensorsFile{folder_}, InputError);
  EXPECT_THROW(SafetensorsFile{folder_ + "/none"}, InputError);
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  EXPECT_THROW(SafetensorsFile{path_}, InputError);  // and does not wait for a writer
}

TEST_F(SafetensorsTest, AnySetOfTensorsComesBack) {
  const std::string path = path_;
  EXPECT_TRUE(rc::check([&] {
    const auto count = *rc::gen::inRange<size_t>(0, 12);
    std::vector<TensorSpec> specs;
    for (size_t i = 0; i < count; ++i) {
      const auto dims = *rc::gen::container<std::vector<int64_t>>(rc::gen::inRange<int64_t>(0, 5));
      const size_t rank = std::min<size_t>(dims.size(), 4);
      const DType types[] = {DType::kF64, DType::kF32, DType::kBF16, DType::kF8E4M3, DType::kI64};
      specs.push_back(
          {*rc::gen::element<std::string>("w", "v.x", "l\"q\"", "\u00e9") + std::to_string(i),
           types[*rc::gen::inRange<size_t>(0, 5)],
           Shape(std::span<const int64_t>(dims.data(), rank))});
    }
    SafetensorsWriter writer(path, specs);
    std::string data(static_cast<size_t>(writer.data_bytes()), '\0');
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 7 + 1);
    writer.append(bytes_of(data));
    writer.commit();
    const SafetensorsFile file(path);
    RC_ASSERT(file.header().tensors.size() == specs.size());
    int64_t at = 0;
    for (const TensorSpec& spec : specs) {
      const TensorInfo* info = file.find(spec.name);
      RC_ASSERT(info != nullptr);
      RC_ASSERT(info->dtype == spec.dtype);
      RC_ASSERT(info->shape == spec.shape);
      RC_ASSERT(info->offset == at);
      const Tensor t = file.tensor(*info);
      RC_ASSERT(std::memcmp(t.data, data.data() + at, static_cast<size_t>(info->bytes)) == 0);
      at += info->bytes;
    }
  }));
}

}  // namespace
}  // namespace tamis
