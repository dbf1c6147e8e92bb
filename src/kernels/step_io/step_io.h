// The two ends of a step on a device: what it reads comes in, what it answers goes out, each by one
// kernel that reads and writes pinned memory of the host, so that both belong to the step's graph.
// For a context with a device only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/context.h"

namespace tamis {

// Copies the host's block to the device and prepares the marks.
struct StepInArgs {
  // Pinned: int64 bytes to copy, a multiple of 16; uint32 number of the step; the bytes from 16 on.
  // `room` can be read.
  const std::byte* host = nullptr;
  int64_t room = 0;
  std::byte* to = nullptr;  // room - 16 bytes, aligned to 16
  // [sequences + 2]: -1 each; behind them 0, StepOutArgs::arrivals, and the number of the step.
  int32_t* marks = nullptr;
  int64_t sequences = 0;
};
void step_in(KernelContext& context, const StepInArgs& args);

// The best token of each row of logits: the largest, the lowest id of several. A row that is not
// all finite marks its sequence, as check_finite does, and its best token means nothing.
struct StepOutArgs {
  const float* logits = nullptr;      // [rows, vocab]
  int64_t rows = 0, vocab = 0;        // rows may be 0: the marks go out all the same
  const int32_t* token = nullptr;     // [rows]
  const int32_t* sequence = nullptr;  // [tokens]
  int32_t mark = 0;
  int32_t* failed = nullptr;  // [sequences]
  int64_t sequences = 0;
  uint32_t* arrivals = nullptr;    // one, 0; behind it the number of the step
  int32_t* host_best = nullptr;    // out, pinned [rows]
  int32_t* host_failed = nullptr;  // out, pinned [sequences]
  uint32_t* host_done = nullptr;   // out, pinned: the number, after all else has come to the host
};
void step_out(KernelContext& context, const StepOutArgs& args);
// Whether nothing is left to run; DeviceError if something failed.
bool step_idle(KernelContext& context);

}  // namespace tamis
