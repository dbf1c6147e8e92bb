// Whether this build can run on a device at all.
#pragma once

#include "tensor/cuda/device.h"

namespace tamis {

// DeviceError, saying how to build, if there is no code for this device's capability.
void check_device_code(const DeviceContext& device);

}  // namespace tamis
