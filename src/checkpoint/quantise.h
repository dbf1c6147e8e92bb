// Weights in narrow formats: from whatever a checkpoint stores to bf16, fp8, int8 or int4, and what
// that costs in accuracy. docs/formats/quantised.md has the byte layouts and the choice of scales.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/function_ref.h"
#include "base/thread_pool.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/convert.h"
#include "kernels/weight.h"

namespace tamis {

// A row of n weights in groups of 32, the last one ragged: q [n] and scales [ceil(n/32)], BF16
// bits. The scale is amax/127 rounded up to bf16, so that no value clips; q = w/scale, nearest
// even. Every |w - q*scale| <= scale/2. A group of zeros has scale 1.
void int8_quant_row(const float* w, int64_t n, int8_t* q, uint16_t* scales);

// The same in -8..7, two values a byte, low nibble first: q [ceil(n/2)], a spare nibble is 0. Of
// the scales amax/7 and max(largest/7, -smallest/8), rounded up, the one with less squared error.
void int4_quant_row(const float* w, int64_t n, uint8_t* q, uint16_t* scales);

// A weight of a Hugging Face checkpoint with its scales, whatever its format.
class StoredWeight {
 public:
  // InputError if the scales are missing or have a wrong shape or dtype.
  StoredWeight(const Checkpoint& checkpoint, const std::string& name);
  StoredWeight(const StoredWeight&) = delete;
  StoredWeight& operator=(const StoredWeight&) = delete;

  const Weight& view() const { return view_; }  // valid as long as checkpoint and this
  const std::string& name() const { return name_; }

 private:
  void attach_fp8_scales(const Tensor& scale);
  void attach_int_scales(const Checkpoint& checkpoint);

  std::string name_;
  Weight view_;
  std::vector<float> scales_;  // of FP8 whose scales are not F32 in the file
};

// The stored format of a weight: kFp8, kInt8, kInt4; kKeep for plain numbers.
NumberFormat stored_format(const Checkpoint& checkpoint, const TensorInfo& weight);

struct RequantiseTarget {
  NumberFormat format = NumberFormat::kBf16;  // not kKeep
  bool power_of_two_scales = true;            // of kFp8
};

// Writes the weight in that format, then its scales, to `sink` in pieces. Memory: about 16 MiB and
// the scales. InputError naming the element if one is not finite and the format is not bf16.
RoundingError requantise(const StoredWeight& weight, const RequantiseTarget& target,
                         ThreadPool& pool, FunctionRef<void(std::span<const std::byte>)> sink);

}  // namespace tamis
