#include "engine/timed_selector.h"

#include <chrono>

#include "tensor/cuda/device.h"

namespace tamis {
namespace {

using Clock = std::chrono::steady_clock;

Clock::time_point when_done(KernelContext& context) {
  if (context.device() != nullptr) context.device()->synchronize();
  return Clock::now();
}

}  // namespace

void TimedSelector::select(KernelContext& context, const SelectorInput& in, int32_t* indices,
                           uint8_t* has_nan) const {
  const Clock::time_point begin = when_done(context);
  of_.select(context, in, indices, has_nan);
  seconds_ += std::chrono::duration<double>(when_done(context) - begin).count();
}

}  // namespace tamis
