// LD-1 to LD-9 and LD-12 to LD-15 of the catalogue of loader failures: single files.
#include "checkpoint/hostile_headers.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/scratch_folder.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kMemoryIsOurs = false;  // shadow memory and quarantine would be counted
#else
constexpr bool kMemoryIsOurs = true;
#endif

int64_t status_kib(const std::string& key) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.compare(0, key.size(), key) == 0) return std::atoll(line.c_str() + key.size());
  }
  return -1;
}

// Peak resident memory that `body` adds, in KiB.
template <typename Body>
int64_t peak_kib(Body body) {
  std::ofstream("/proc/self/clear_refs") << "5";  // the peak starts again from here
  const int64_t before = status_kib("VmRSS:");
  body();
  return status_kib("VmHWM:") - before;
}

std::string error_of(const std::string& path) {
  try {
    SafetensorsFile file(path);
  } catch (const InputError& e) {
    return e.what();
  }
  return "accepted";
}

TEST(HostileHeaders, EachIsRefusedWithItsOwnMessage) {
  const ScratchFolder folder;
  const std::string path = folder / "f.safetensors";
  for (const HostileFile& bad : hostile_files()) {
    folder.write("f.safetensors", bad.bytes);
    std::string message;
    const int64_t kib = peak_kib([&] { message = error_of(path); });
    EXPECT_EQ(message.compare(0, path.size(), path), 0) << bad.name << ": " << message;
    EXPECT_NE(message.find(bad.message), std::string::npos) << bad.name << ": " << message;
    EXPECT_LT(message.size(), 600u) << bad.name << ": a message never echoes a file";
    const int64_t limit_kib = bad.name.compare(0, 3, "ld5") == 0 ? 1024 : 64 << 10;
    if (kMemoryIsOurs) {
      EXPECT_LE(kib, limit_kib) << bad.name;
    }
  }
}

TEST(HostileHeaders, RowsAreComplete) {
  std::set<std::string> rows;
  for (const HostileFile& bad : hostile_files()) {
    if (bad.name.compare(0, 2, "ld") == 0) rows.insert(bad.name.substr(0, bad.name.find('_')));
  }
  EXPECT_EQ(rows, (std::set<std::string>{"ld1", "ld2", "ld4", "ld5", "ld6", "ld7", "ld8", "ld9",
                                         "ld12", "ld13", "ld14"}));
}

TEST(HostileHeaders, Ld3TruncatedShardNamesTheMissingBytes) {
  const ScratchFolder folder;
  const std::string path = folder / "model-00008-of-00102.safetensors";
  folder.write("model-00008-of-00102.safetensors",
               safetensors_file(R"({"w":{"dtype":"F32","shape":[8388608],)"
                                R"("data_offsets":[0,33554432]}})",
                                0));
  const auto whole = fs::file_size(path) + 33554432;
  fs::resize_file(path, whole);
  EXPECT_EQ(error_of(path), "accepted");
  fs::resize_file(path, whole - 24786776);
  const std::string message = error_of(path);
  EXPECT_NE(message.find("model-00008-of-00102.safetensors"), std::string::npos) << message;
  EXPECT_NE(message.find("24786776 bytes are missing"), std::string::npos) << message;
}

TEST(HostileHeaders, Ld6OverlapBomb) {
  std::string json = "{";
  for (int i = 0; i < 100000; ++i) {
    json += (i == 0 ? "\"weight_" : ",\"weight_") + std::to_string(i) +
            R"(":{"dtype":"F32","shape":[200,200],"data_offsets":[0,160000]})";
  }
  const ScratchFolder folder;
  folder.write("f.safetensors", safetensors_file(json + "}", 160000));
  std::string message;
  const std::clock_t start = std::clock();
  const int64_t kib = peak_kib([&] { message = error_of(folder / "f.safetensors"); });
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  EXPECT_NE(message.find("overlaps"), std::string::npos) << message;
  EXPECT_LT(seconds, 2.0);
  if (kMemoryIsOurs) {
    EXPECT_LT(kib, 256 << 10);
  }
  RecordProperty("ld6_ms", static_cast<int>(seconds * 1000));
  RecordProperty("ld6_kib", static_cast<int>(kib));
}

// Element counts around 2^31 and 2^32, in sparse files: every size must be 64 bits wide.
TEST(HostileHeaders, Ld15CountsPast32Bits) {
  const ScratchFolder folder;
  const std::string path = folder / "f.safetensors";
  for (const int64_t count :
       {int64_t{1} << 31, (int64_t{1} << 31) + 1, int64_t{1} << 32, (int64_t{1} << 32) + 1}) {
    const std::string n = std::to_string(count), two = std::to_string(2 * count);
    folder.write("f.safetensors", safetensors_file(R"({"w":{"dtype":"BF16","shape":[)" + n +
                                                       R"(],"data_offsets":[0,)" + two + "]}}",
                                                   0));
    const int64_t header = static_cast<int64_t>(fs::file_size(path));
    fs::resize_file(path, static_cast<uintmax_t>(header + 2 * count));
    {
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(header + 2 * count - 2);
      file.write("\x80\x3F", 2);  // 1.0 as the last element
    }
    const SafetensorsFile file(path);
    const Tensor t = file.tensor(*file.find("w"));
    EXPECT_EQ(t.shape.elements(), count);
    EXPECT_EQ(t.bytes(), 2 * count);
    EXPECT_EQ(tensor_element(t, count - 1), 1.0f) << count;
    fs::resize_file(path, static_cast<uintmax_t>(header + 2 * count - (int64_t{1} << 31)));
    EXPECT_NE(error_of(path).find("2147483648 bytes are missing"), std::string::npos) << count;
  }
}

// A hostile file that is found once stays a seed of the fuzz target. With TAMIS_WRITE_SEEDS set the
// missing ones are written.
TEST(HostileHeaders, SmallOnesAreFuzzSeeds) {
  const std::string folder = std::string(TAMIS_SOURCE_DIR) + "/fuzz/corpus/safetensors/";
  for (const HostileFile& bad : hostile_files()) {
    if (bad.bytes.size() > 1000) continue;
    if (std::getenv("TAMIS_WRITE_SEEDS") != nullptr) {
      std::ofstream(folder + bad.name, std::ios::binary) << bad.bytes;
    }
    std::ifstream seed(folder + bad.name, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(seed), {}};
    EXPECT_EQ(bytes, bad.bytes) << bad.name << " is not in " << folder;
  }
}

}  // namespace
}  // namespace tamis
