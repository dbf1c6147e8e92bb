// The scales of FP8 weights: X.weight of F8_E4M3 goes with X.weight_scale_inv, one value for each
// block of 128 x 128, the last ones ragged.
#include <cmath>

#include "base/error.h"
#include "checkpoint/checkpoint.h"

namespace tamis {
namespace {

constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kScale = ".weight_scale_inv";

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool is_scale_dtype(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF8E8M0;
}

bool is_plain_float(DType dtype) {
  return dtype == DType::kF64 || dtype == DType::kF32 || dtype == DType::kF16 ||
         dtype == DType::kBF16;
}

int64_t blocks(int64_t size) { return size / kFp8Block + (size % kFp8Block != 0 ? 1 : 0); }

[[noreturn]] void fail(const std::string& where, std::string_view name, const std::string& what) {
  throw InputError(where + ": tensor \"" + printable(name) + "\": " + what);
}

void check_pair(const std::string& where, const TensorInfo& weight, const TensorInfo* scale) {
  if (weight.shape.rank() != 2) {
    fail(where, weight.name,
         "an FP8 weight of shape " + weight.shape.to_string() + ", want 2 dimensions");
  }
  if (scale == nullptr) fail(where, weight.name, "an FP8 weight without its _scale_inv");
  const Shape want{blocks(weight.shape[0]), blocks(weight.shape[1])};
  if (!(scale->shape == want)) {
    fail(where, scale->name,
         "shape " + scale->shape.to_string() + ", a weight of " + weight.shape.to_string() +
             " has " + want.to_string() + " blocks of 128x128");
  }
  if (!is_scale_dtype(scale->dtype)) {
    fail(where, scale->name,
         "dtype " + std::string(dtype_name(scale->dtype)) + ", want F32, BF16 or F8_E8M0");
  }
}

}  // namespace

void Checkpoint::check_fp8_shapes() const {
  for (const Entry& entry : entries_) {
    const TensorInfo& info = *entry.info;
    const std::string where = folder_ + "/" + shard_name(entry.shard);
    if (info.dtype == DType::kF8E4M3 && ends_with(info.name, kWeight)) {
      check_pair(where, info, find(info.name + "_scale_inv"));
    }
    if (ends_with(info.name, kScale)) {
      const TensorInfo* weight = find(
          std::string_view(info.name).substr(0, info.name.size() - kScale.size() + kWeight.size()));
      if (weight == nullptr) fail(where, info.name, "a scale without its weight");
      if (is_plain_float(weight->dtype)) {
        fail(where, info.name,
             "a scale of a weight that is " + std::string(dtype_name(weight->dtype)) +
                 ", not quantised");
      }
    }
  }
}

void Checkpoint::check_scales() const {
  for (const Entry& entry : entries_) {
    if (!ends_with(entry.info->name, kScale)) continue;
    check_scale_values(entry.info->name, tensor(entry.info->name));
  }
}

void check_scale_values(std::string_view name, const Tensor& scale) {
  const int64_t count = scale.shape.elements();
  for (int64_t i = 0; i < count; ++i) {
    const float value = tensor_element(scale, i);
    if (!(std::isfinite(value) && value > 0)) {
      fail("FP8 scales", name,
           "element " + std::to_string(i) + " is " + std::to_string(value) +
               ", a scale is finite and greater than 0");
    }
  }
}

}  // namespace tamis
