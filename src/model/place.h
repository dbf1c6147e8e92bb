// Where the buffers of one Activations lie, and how often one of them has moved.
#pragma once

#include <cstdint>

#include "tensor/cuda/device.h"

namespace tamis {

struct Place {
  DeviceContext* device = nullptr;  // null: the host
  int64_t moves = 0;                // of buffers on the device
};

}  // namespace tamis
