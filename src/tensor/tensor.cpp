#include "tensor/tensor.h"

#include <cstring>

#include "base/error.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

template <typename T>
T load(const Tensor& t, int64_t i) {
  T value;
  std::memcpy(&value, t.data + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

}  // namespace

Shape::Shape(std::initializer_list<int64_t> dims)
    : Shape(std::span<const int64_t>(dims.begin(), dims.size())) {}

Shape::Shape(std::span<const int64_t> dims) {
  if (dims.size() > kMaxRank) throw UsageError("shape: more than 4 dimensions");
  for (const int64_t d : dims) dims_[static_cast<size_t>(rank_++)] = d;
}

int64_t Shape::elements() const {
  int64_t n = 1;
  for (int i = 0; i < rank_; ++i) n *= (*this)[i];
  return n;
}

bool Shape::operator==(const Shape& other) const {
  return rank_ == other.rank_ && dims_ == other.dims_;
}

std::string Shape::to_string() const {
  std::string out = "[";
  for (int i = 0; i < rank_; ++i) out += (i == 0 ? "" : ",") + std::to_string((*this)[i]);
  return out + "]";
}

float tensor_element(const Tensor& t, int64_t i) {
  switch (t.dtype) {
    case DType::kF64:
      return static_cast<float>(load<double>(t, i));
    case DType::kF32:
      return load<float>(t, i);
    case DType::kF16:
      return f16_to_float(load<uint16_t>(t, i));
    case DType::kBF16:
      return bf16_to_float(load<uint16_t>(t, i));
    case DType::kF8E4M3:
      return e4m3_to_float(load<uint8_t>(t, i));
    case DType::kF8E8M0:
      return e8m0_to_float(load<uint8_t>(t, i));
    case DType::kI64:
      return static_cast<float>(load<int64_t>(t, i));
    case DType::kI32:
      return static_cast<float>(load<int32_t>(t, i));
    case DType::kI16:
      return static_cast<float>(load<int16_t>(t, i));
    case DType::kI8:
      return static_cast<float>(load<int8_t>(t, i));
    case DType::kU8:
    case DType::kBool:
      return static_cast<float>(load<uint8_t>(t, i));
    case DType::kI4:
      break;
  }
  throw UsageError("tensor_element: 4-bit tensors have no addressable element");
}

}  // namespace tamis
