// LD-10, LD-11 and LD-17 of the catalogue of loader failures: whole folders.
#include <gtest/gtest.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/hostile_headers.h"
#include "checkpoint/scratch_folder.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

const char kOneByte[] = R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";

// Counts how often a file is opened by anyone.
class OpenWatch {
 public:
  explicit OpenWatch(const std::string& path) : fd_(::inotify_init1(IN_NONBLOCK)) {
    if (::inotify_add_watch(fd_, path.c_str(), IN_OPEN) < 0) throw std::runtime_error("inotify");
  }
  ~OpenWatch() { ::close(fd_); }
  bool opened() const {
    char buffer[4096];
    return ::read(fd_, buffer, sizeof buffer) > 0;
  }

 private:
  int fd_;
};

class HostileFolders : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(model());
    scratch_.write("model/config.json", "{}");
    scratch_.write("model/model-1.safetensors", safetensors_file(kOneByte, 1));
    scratch_.write("b.safetensors", safetensors_file(kOneByte, 1));
  }
  std::string model() const { return scratch_ / "model"; }
  void index(const std::string& json) const {
    scratch_.write("model/model.safetensors.index.json", json);
  }
  std::string error(bool follow_links = false) const {
    try {
      Checkpoint::open(model(), {follow_links});
    } catch (const InputError& e) {
      return e.what();
    }
    return "accepted";
  }
  void expect_error(const std::string& part) const {
    const std::string message = error();
    EXPECT_NE(message.find(part), std::string::npos) << part << " / " << message;
  }

  ScratchFolder scratch_;
};

TEST_F(HostileFolders, Ld10ShardsOutsideTheFolder) {
  const OpenWatch outside(scratch_ / "b.safetensors"), passwd("/etc/passwd");
  const std::pair<const char*, const char*> names[] = {
      {"../../etc/passwd", "leads out of the folder"},
      {"/etc/passwd", "leads out of the folder"},
      {"a/../../b.safetensors", "leads out of the folder"},
      {"../b.safetensors", "leads out of the folder"},
      {"sub/b.safetensors", "leads out of the folder"},
      {R"(..\\b.safetensors)", "leads out of the folder"},
      {R"(b.safetensors\u0000x.safetensors)", "holds a zero byte"},
      {"..", "is not a .safetensors file"},
      {"", "is not a .safetensors file"},
      {"passwd", "is not a .safetensors file"},
      {"gone.safetensors", "is not in the folder"},
  };
  for (const auto& [name, message] : names) {
    index(std::string(R"({"weight_map":{"w":")") + name + "\"}}");
    fs::remove(model() + "/model-1.safetensors");
    expect_error(message);
  }
  EXPECT_FALSE(outside.opened());
  EXPECT_FALSE(passwd.opened());
}

TEST_F(HostileFolders, Ld10LinksOutsideTheFolder) {
  fs::remove(model() + "/model-1.safetensors");
  fs::create_symlink("../b.safetensors", model() + "/model.safetensors");
  {
    const OpenWatch outside(scratch_ / "b.safetensors");
    expect_error("a link to a file outside the folder; pass --follow-links");
    EXPECT_FALSE(outside.opened());
  }
  EXPECT_EQ(error(/*follow_links=*/true), "accepted");
  fs::remove(scratch_ / "b.safetensors");
  expect_error("a link to a file that is not there");
  EXPECT_NE(error(true).find("a link to a file that is not there"), std::string::npos);
}

TEST_F(HostileFolders, Ld10LinksOfOtherFiles) {
  scratch_.write("secret", "{}");
  fs::remove(model() + "/config.json");
  fs::create_symlink("../secret", model() + "/config.json");
  fs::rename(model() + "/model-1.safetensors", model() + "/model.safetensors");
  expect_error("config.json: a link to a file outside");
  EXPECT_EQ(error(true), "accepted");
  // A link to a neighbour, and a folder reached through a link, are no escape.
  fs::remove(model() + "/config.json");
  scratch_.write("model/c.json", "{}");
  fs::create_symlink("c.json", model() + "/config.json");
  fs::create_directory_symlink(model(), scratch_ / "alias");
  EXPECT_NO_THROW(Checkpoint::open(scratch_ / "alias"));
}

TEST_F(HostileFolders, FilesThatAreNoFiles) {
  fs::remove(model() + "/model-1.safetensors");
  fs::create_directory(model() + "/model.safetensors");
  expect_error("model.safetensors: not a regular file");
  fs::remove(model() + "/config.json");
  ASSERT_EQ(::mkfifo((model() + "/config.json").c_str(), 0600), 0);
  expect_error("config.json: not a regular file");
}

TEST_F(HostileFolders, Ld11IndexAgainstShards) {
  const std::string map = R"("weight_map":{"w":"model-1.safetensors"})";
  index("{" + map + "}");
  EXPECT_EQ(error(), "accepted");
  index(R"({"metadata":{"total_size":1},)" + map + "}");
  EXPECT_EQ(error(), "accepted");
  index(R"({"metadata":{"total_size":2},)" + map + "}");
  expect_error("total_size is 2, the tensors of the shards have 1 bytes");

  index(R"({"weight_map":{"w":"model-1.safetensors","v":"model-1.safetensors"}})");
  expect_error("tensor \"v\" is not in its shard \"model-1.safetensors\"");

  scratch_.write("model/model-2.safetensors", safetensors_file(kOneByte, 1));
  index("{" + map + "}");
  expect_error("\"model-2.safetensors\" is in the folder but not in");
  index(R"({"weight_map":{"w":"model-1.safetensors","v":"model-2.safetensors"}})");
  expect_error("tensor \"w\" is both in \"model-1.safetensors\" and in \"model-2.safetensors\"");

  scratch_.write("model/model-2.safetensors",
                 safetensors_file(R"({"v":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                  R"("u":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                                  2));
  expect_error("tensor \"u\" of the shard \"model-2.safetensors\" is not in weight_map");
  index(R"({"weight_map":{"w":"model-2.safetensors","v":"model-1.safetensors",)"
        R"("u":"model-2.safetensors"}})");
  expect_error("is not in its shard");
}

TEST_F(HostileFolders, Ld11MalformedIndex) {
  const std::pair<const char*, const char*> bad[] = {
      {"[]", "not an object"},
      {"{}", "no object weight_map"},
      {R"({"weight_map":[]})", "no object weight_map"},
      {R"({"weight_map":{}})", "weight_map is empty"},
      {R"({"weight_map":{"w":1}})", "entry \"w\" is not a string"},
      {R"({"weight_map":{"w":"model-1.safetensors","w":"model-1.safetensors"}})", "duplicate key"},
      {R"({"metadata":1,"weight_map":{"w":"model-1.safetensors"}})", "metadata is not an object"},
      {R"({"metadata":{"total_size":-1},"weight_map":{"w":"model-1.safetensors"}})",
       "total_size is not a number of bytes"},
      {R"({"metadata":{"total_size":1e300},"weight_map":{"w":"model-1.safetensors"}})",
       "total_size is not a number of bytes"},
      {R"({"metadata":{"total_size":"1"},"weight_map":{"w":"model-1.safetensors"}})",
       "total_size is not a number of bytes"},
      {"{", "not valid JSON"},
  };
  for (const auto& [json, message] : bad) {
    index(json);
    expect_error(message);
  }
}

// A folder with an FP8 weight of [130, 256]: 2 x 2 blocks.
class Fp8Folder : public HostileFolders {
 protected:
  void SetUp() override {
    HostileFolders::SetUp();
    fs::remove(model() + "/model-1.safetensors");
  }
  void write(const std::vector<TensorSpec>& specs, const std::string& scales) const {
    SafetensorsWriter writer(model() + "/model.safetensors", specs);
    const int64_t rest = writer.data_bytes() - static_cast<int64_t>(scales.size());
    writer.append(bytes_of(std::string(static_cast<size_t>(rest), '\x38')));
    writer.append(bytes_of(scales));
    writer.commit();
  }
  // `w.weight` with scales of this type and shape, then their bytes.
  void write_scales(DType dtype, const Shape& shape, const std::string& scales) const {
    write({{"w.weight", DType::kF8E4M3, Shape{130, 256}}, {"w.weight_scale_inv", dtype, shape}},
          scales);
  }
  template <typename T>
  static std::string raw(std::initializer_list<T> values) {
    return {reinterpret_cast<const char*>(values.begin()), values.size() * sizeof(T)};
  }
  std::string scale_error() const {
    try {
      Checkpoint::open(model()).check_scales();
    } catch (const InputError& e) {
      return e.what();
    }
    return "accepted";
  }
};

TEST_F(Fp8Folder, AcceptedScales) {
  write_scales(DType::kF32, Shape{2, 2}, raw({1.f, 0.5f, 3e-30f, 7.f}));
  EXPECT_EQ(scale_error(), "accepted");
  write_scales(DType::kBF16, Shape{2, 2}, raw<uint16_t>({0x3F80, 0x3F80, 0x3F80, 0x0080}));
  EXPECT_EQ(scale_error(), "accepted");
  write_scales(DType::kF8E8M0, Shape{2, 2}, raw<uint8_t>({0, 127, 128, 254}));
  EXPECT_EQ(scale_error(), "accepted");
}

TEST_F(Fp8Folder, Ld17MissingOrMisshapen) {
  write({{"w.weight", DType::kF8E4M3, Shape{130, 256}}}, "");
  expect_error("tensor \"w.weight\": an FP8 weight without its _scale_inv");
  const std::string ones = raw({1.f, 1.f, 1.f, 1.f, 1.f, 1.f});
  for (const Shape& shape : {Shape{1, 2}, Shape{2, 1}, Shape{2, 3}, Shape{3, 2}, Shape{4},
                             Shape{2, 2, 1}, Shape{}, Shape{0, 2}}) {
    write_scales(DType::kF32, shape, ones.substr(0, static_cast<size_t>(shape.elements()) * 4));
    expect_error("\"w.weight_scale_inv\": shape " + shape.to_string() +
                 ", a weight of [130,256] has [2,2] blocks");
  }
  write_scales(DType::kF16, Shape{2, 2}, raw<uint16_t>({1, 1, 1, 1}));
  expect_error("\"w.weight_scale_inv\": dtype F16, want F32, BF16 or F8_E8M0");
  write({{"w.weight", DType::kF8E4M3, Shape{256}}, {"w.weight_scale_inv", DType::kF32, Shape{2}}},
        raw({1.f, 1.f}));
  expect_error("\"w.weight\": an FP8 weight of shape [256]");
  write({{"w.weight_scale_inv", DType::kF32, Shape{1, 1}}}, raw({1.f}));
  expect_error("\"w.weight_scale_inv\": a scale without its weight");
  write({{"w.weight", DType::kBF16, Shape{2, 2}}, {"w.weight_scale_inv", DType::kF32, Shape{1, 1}}},
        raw({1.f}));
  expect_error("\"w.weight_scale_inv\": a scale of a weight that is BF16");
}

TEST_F(Fp8Folder, Ld17ValuesThatAreNoScale) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::nanf(""), 0.f, -0.f, -1.f, infinity, -infinity}) {
    for (int at = 0; at < 4; ++at) {
      float values[4] = {1, 1, 1, 1};
      values[at] = bad;
      write_scales(DType::kF32, Shape{2, 2}, {reinterpret_cast<const char*>(values), 16});
      EXPECT_NE(scale_error().find("\"w.weight_scale_inv\": element " + std::to_string(at)),
                std::string::npos)
          << scale_error();
    }
  }
  write_scales(DType::kF8E8M0, Shape{2, 2}, raw<uint8_t>({127, 127, 255, 127}));
  EXPECT_NE(scale_error().find("element 2"), std::string::npos) << scale_error();
  write_scales(DType::kBF16, Shape{2, 2}, raw<uint16_t>({0x3F80, 0x7FC0, 0x3F80, 0x3F80}));
  EXPECT_NE(scale_error().find("element 1"), std::string::npos) << scale_error();
}

}  // namespace
}  // namespace tamis
