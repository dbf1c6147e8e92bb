#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "tensor/cuda/device.h"
#include "tensor/cuda/graph.h"

namespace tamis {
namespace {

std::vector<int32_t> numbers(size_t n) {
  std::vector<int32_t> v(n);
  std::iota(v.begin(), v.end(), 3);
  return v;
}

TEST(Device, CopiesInOrder) {
  DeviceContext device;
  EXPECT_GE(device.info().sm, 80);
  const std::vector<int32_t> in = numbers(1 << 20);
  const auto bytes = static_cast<int64_t>(in.size() * 4);
  DeviceBuffer a(device, bytes, "a test"), b(device, bytes, "a test");
  device.fill(b.data(), 0xFF, bytes);
  device.upload(a.data(), in.data(), bytes);
  device.copy(b.data(), a.data(), bytes - 4);
  std::vector<int32_t> out(in.size());
  device.download(out.data(), b.data(), bytes);
  EXPECT_EQ(out.back(), -1);
  out.back() = in.back();
  EXPECT_EQ(out, in);
}

TEST(Device, SaysWhatMemoryItCouldNotHave) {
  DeviceContext device;
  try {
    DeviceBuffer all(device, int64_t{1} << 45, "the cache");
    FAIL();
  } catch (const DeviceError& e) {
    const std::string what = e.what();
    for (const char* part : {"32768.0 GiB", "the cache", "are free", "--max-context"}) {
      EXPECT_NE(what.find(part), std::string::npos) << what;
    }
  }
  EXPECT_THROW(device.scratch(3, int64_t{1} << 45), DeviceError);
  // The device still works.
  EXPECT_NO_THROW(DeviceBuffer(device, 1 << 20, "a test"));
  device.synchronize();
}

TEST(Device, ThereIsNoDevice1000) { EXPECT_THROW(DeviceContext(1000), DeviceError); }

TEST(Device, ScratchGrowsAndStays) {
  DeviceContext device;
  void* small = device.scratch(2, 1000);
  EXPECT_EQ(device.scratch(2, 10), small);
  device.scratch(2, 1 << 20);
  EXPECT_EQ(device.scratch_bytes(), 1 << 20);
}

TEST(Device, RecordedWorkRunsAgainWithWhatMemoryHolds) {
  DeviceContext device;
  DeviceBuffer a(device, 400, "a test"), b(device, 400, "a test");
  device.fill(b.data(), 0, 400);
  const DeviceGraph graph(device, [&] { device.copy(b.data(), a.data(), 400); });
  for (const int byte : {1, 2}) {
    device.fill(a.data(), byte, 400);
    char out[400];
    device.download(out, b.data(), 400);
    EXPECT_EQ(out[7], byte - 1);  // recording and filling have not run it
    graph.launch(device);
    device.download(out, b.data(), 400);
    EXPECT_EQ(out[399], byte);
  }
}

TEST(Device, RefusesToRecordWhatCannotBe) {
  DeviceContext device;
  EXPECT_THROW(DeviceGraph(device, [&] { device.synchronize(); }), DeviceError);
  EXPECT_THROW(DeviceGraph(device, [&] { DeviceBuffer(device, 1 << 20, "a test"); }), DeviceError);
  EXPECT_NO_THROW(device.synchronize());
}

}  // namespace
}  // namespace tamis
