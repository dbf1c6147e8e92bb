// Without a GPU: the failures. (scripts/test-gpu runs the rest.)
#include "tensor/cuda/device.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace tamis {
namespace {

std::string failure() {
  try {
    DeviceContext device;
  } catch (const DeviceError& e) {
    return e.what();
  }
  return "";
}

TEST(Device, SaysWhatToDoWithoutCuda) {
  if (cuda_built()) {
    try {
      EXPECT_FALSE(cuda_devices().empty());
    } catch (const DeviceError& e) {
      EXPECT_NE(std::string(e.what()).find("--backend cpu"), std::string::npos) << e.what();
    }
    return;
  }
  EXPECT_THROW(cuda_devices(), DeviceError);
  EXPECT_NE(failure().find("cmake --preset cuda"), std::string::npos) << failure();
}

}  // namespace
}  // namespace tamis
