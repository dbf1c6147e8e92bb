// A file cut at any place is refused, and so is one that changes while it is mapped.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/hostile_headers.h"
#include "checkpoint/scratch_folder.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

std::string contents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string tiny_file(const ScratchFolder& folder) {
  const std::vector<TensorSpec> specs = {
      {"model.embed_tokens.weight", DType::kF32, Shape{3, 5}},
      {"empty", DType::kF32, Shape{0}},
      {"model.norm.weight", DType::kBF16, Shape{7}},
      {"last", DType::kU8, Shape{1}},
  };
  SafetensorsWriter writer(folder / "model.safetensors", specs, {{"format", "pt"}});
  const std::string data(static_cast<size_t>(writer.data_bytes()), 'd');
  writer.append(bytes_of(data));
  writer.commit();
  return contents(folder / "model.safetensors");
}

TEST(Truncation, EveryLengthOfATinyFile) {
  const ScratchFolder folder;
  folder.write("config.json", "{}");
  const std::string whole = tiny_file(folder);
  for (size_t size = 0; size <= whole.size() + 2; ++size) {
    folder.write("model.safetensors", (whole + "xy").substr(0, size));
    if (size == whole.size()) {
      EXPECT_EQ(Checkpoint::open(folder.path()).entries().size(), 4u);
    } else {
      EXPECT_THROW(Checkpoint::open(folder.path()), InputError) << size;
    }
  }
}

// The bundled model: every byte of the header, every 4 KiB, every tensor edge and its neighbours.
// parse_safetensors_header sees what a file of that length would give it.
TEST(Truncation, TheBundledModel) {
  int files = 0;
  const fs::path folder = fs::path(TAMIS_SOURCE_DIR) / "models/tamis-mini";
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    const SafetensorsFile file(entry.path().string());
    const std::span<const std::byte> header(file.file().data(),
                                            static_cast<size_t>(file.header().header_bytes));
    const auto accepted = [&](int64_t size) {
      try {
        const auto kept = std::min<size_t>(header.size(), static_cast<size_t>(size));
        parse_safetensors_header(header.first(kept), size, "f");
        return true;
      } catch (const InputError&) {
        return false;
      }
    };
    ASSERT_TRUE(accepted(file.file().size()));
    std::vector<int64_t> cuts;
    for (int64_t i = 0; i <= file.header().header_bytes; ++i) cuts.push_back(i);
    for (int64_t i = 0; i < file.file().size(); i += 4096) cuts.push_back(i);
    for (const TensorInfo& info : file.header().tensors) {
      const int64_t end = file.header().header_bytes + info.offset + info.bytes;
      for (const int64_t cut : {end - 1, end, end + 1}) cuts.push_back(cut);
    }
    for (const int64_t cut : cuts) {
      if (cut == file.file().size()) continue;
      ASSERT_FALSE(accepted(cut)) << entry.path() << " at " << cut;
    }
    ++files;
  }
  EXPECT_EQ(files, 2);
}

TEST(Truncation, WhileMapped) {
  const ScratchFolder folder;
  folder.write("config.json", "{}");
  const std::string whole = tiny_file(folder);
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  EXPECT_NO_THROW(checkpoint.check_unchanged());
  const auto error = [&] {
    try {
      checkpoint.check_unchanged();
    } catch (const InputError& e) {
      return std::string(e.what());
    }
    return std::string("unchanged");
  };
  fs::resize_file(folder / "model.safetensors", whole.size() - 1);
  EXPECT_NE(error().find("model.safetensors: the file changed"), std::string::npos) << error();
  fs::remove(folder / "model.safetensors");
  EXPECT_NE(error().find("model.safetensors"), std::string::npos) << error();
}

}  // namespace
}  // namespace tamis
