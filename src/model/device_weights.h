// A model's weights on a device: one arena, filled from the mapped checkpoint through pinned
// memory.
#pragma once

#include "base/function_ref.h"
#include "kernels/context.h"
#include "model/weights.h"
#include "tensor/cuda/device.h"

namespace tamis {

// Bytes that the weights take on a device.
int64_t device_weight_bytes(const ModelWeights& weights);

class DeviceWeights {
 public:
  // `host` is read once and may go afterwards; the context's device must outlive the copy.
  // progress(done, total) is called about every 64 MiB. DeviceError if the memory cannot be had.
  DeviceWeights(KernelContext& context, const ModelWeights& host,
                FunctionRef<void(int64_t, int64_t)> progress);

  const ModelWeights& weights() const { return weights_; }

 private:
  ModelWeights weights_;
  DeviceBuffer arena_;
};

}  // namespace tamis
