// The back end on which tests of whole models run: cpu, or the one that the environment variable
// TAMIS_TEST_BACKEND names (scripts/test-gpu: cuda).
#pragma once

#include <cstdlib>

#include "kernels/context.h"

namespace tamis {

inline Backend test_backend() {
  const char* name = std::getenv("TAMIS_TEST_BACKEND");
  return name == nullptr ? Backend::kCpu : backend_from_name(name);
}

}  // namespace tamis
