// Finds the stored cases: small ones in tests/golden/model, all of them in the folder that the
// environment variable TAMIS_FIXTURES names.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

namespace tamis {

inline std::optional<std::string> case_folder(const std::string& name) {
  namespace fs = std::filesystem;
  const fs::path bundled = fs::path(TAMIS_SOURCE_DIR) / "tests/golden/model" / name;
  if (fs::exists(bundled)) return bundled.string();
  const char* fixtures = std::getenv("TAMIS_FIXTURES");
  if (fixtures != nullptr && fs::exists(fs::path(fixtures) / name)) {
    return (fs::path(fixtures) / name).string();
  }
  return std::nullopt;
}

}  // namespace tamis
