// Work on a device that is recorded once and started many times.
#pragma once

#include "base/function_ref.h"
#include "tensor/cuda/device.h"

struct CUgraphExec_st;

namespace tamis {

// What some work puts on the device's stream, recorded to be started again and again as one: a
// launch costs the host microseconds, whatever the number of operations. Addresses and sizes are
// those of the recording. The context must outlive it.
class DeviceGraph {
 public:
  DeviceGraph() = default;
  // Calls `work`, which runs nothing. DeviceError if it does what cannot be recorded: taking
  // memory, waiting, copying from or to host memory that is not pinned.
  DeviceGraph(DeviceContext& device, FunctionRef<void()> work);
  DeviceGraph(DeviceGraph&& other) noexcept;
  DeviceGraph& operator=(DeviceGraph&& other) noexcept;
  ~DeviceGraph();

  bool recorded() const { return graph_ != nullptr; }
  void launch(DeviceContext& device) const;

 private:
  CUgraphExec_st* graph_ = nullptr;
};

}  // namespace tamis
