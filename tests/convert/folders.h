// Folders for the tests of `tamis convert`: models to read, temporary places to write.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace tamis::convert_test {

namespace fs = std::filesystem;

// A folder of its own, removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() : TemporaryFolder(::testing::TempDir()) {}
  explicit TemporaryFolder(const std::string& parent) {
    std::string pattern = parent + "tamis-convert-XXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { fs::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string path(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// Where fsync costs nothing, for tests that convert hundreds of times; what a kill leaves behind is
// the same on every file system.
inline std::string fast_parent() {
  std::error_code error;
  const fs::space_info space = fs::space("/dev/shm", error);
  const bool usable =
      !error && space.available > (uintmax_t{100} << 20) && ::access("/dev/shm", W_OK) == 0;
  return usable ? "/dev/shm/" : ::testing::TempDir();
}

inline std::string mini() { return std::string(TAMIS_SOURCE_DIR) + "/models/tamis-mini"; }

// The bundled model, and those of the folder named by TAMIS_FIXTURES.
inline std::vector<std::string> models() {
  std::vector<std::string> found = {mini()};
  const char* fixtures = std::getenv("TAMIS_FIXTURES");
  if (fixtures == nullptr) return found;
  for (const char* name : {"a_fp32_dense", "b_fp32_sparse_yarn", "c_bf16", "d_fp8", "d2_fp8_ragged",
                           "e_v3_dense", "f_glm_dsa"}) {
    const std::string path = std::string(fixtures) + "/" + name;
    if (fs::exists(path + "/config.json")) found.push_back(path);
  }
  return found;
}

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

inline std::string bytes_of(const Tensor& tensor) {
  return {reinterpret_cast<const char*>(tensor.data), static_cast<size_t>(tensor.bytes())};
}

// Name -> contents of every file of a folder.
inline std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files[entry.path().filename().string()] = read_file(entry.path().string());
  }
  return files;
}

}  // namespace tamis::convert_test
