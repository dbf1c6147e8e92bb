// A TestWeight's copy on the device, its misalignment kept. Test code only.
#pragma once

#include "kernels/test_weight.h"
#include "support/cuda_device.h"

namespace tamis {

class DeviceWeight {
 public:
  DeviceWeight(KernelContext& context, const TestWeight& t)
      : data_(context, t.data), scales_(context, t.scales), w_(t.w) {
    w_.data = data_.data() + (t.w.data - t.data.data());
    w_.scales = scales_.data();
  }
  const Weight& w() const { return w_; }

 private:
  Device<std::byte> data_, scales_;
  Weight w_;
};

}  // namespace tamis
