#include "train/input_file.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"

namespace tamis {

namespace fs = std::filesystem;

void want_file(const std::string& path, std::string_view advice) {
  std::error_code error;
  const char* wrong = nullptr;
  if (!fs::exists(path, error)) {
    wrong = "no such file";
  } else if (fs::is_directory(path, error)) {
    wrong = "a folder, not a file";
  } else if (fs::is_regular_file(path, error) && !std::ifstream(path)) {
    wrong = "cannot be read";
  }
  if (wrong != nullptr) throw InputError(fmt::format("{}: {}; {}", path, wrong, advice));
}

void make_folder(const std::string& path, std::string_view advice) {
  std::error_code error;
  fs::create_directories(path, error);
  if (!error) return;
  throw InputError(
      fmt::format("{}: the folder cannot be made ({}); {}", path, error.message(), advice));
}

}  // namespace tamis
