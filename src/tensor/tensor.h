// A tensor is a view: it never owns its memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "tensor/dtype.h"

namespace tamis {

// Up to four dimensions, outermost first. Sizes are int64_t: tokens * heads * width passes 2^31.
class Shape {
 public:
  static constexpr int kMaxRank = 4;
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims);
  explicit Shape(std::span<const int64_t> dims);  // UsageError if there are more than kMaxRank

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[static_cast<size_t>(i)]; }
  int64_t elements() const;
  bool operator==(const Shape& other) const;
  std::string to_string() const;  // "[4,64]"

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

// Dense, row-major, read-only bytes of a tensor (of a file, or a result).
struct Tensor {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;

  int64_t bytes() const { return dtype_bytes(dtype, shape.elements()); }
};

// Element `i` of a tensor of any dtype but kI4, as float.
float tensor_element(const Tensor& tensor, int64_t i);

}  // namespace tamis
