#include "tensor/dtype.h"

namespace tamis {
namespace {

struct Entry {
  DType dtype;
  std::string_view name;
  int bits;
};

constexpr Entry kEntries[] = {
    {DType::kF64, "F64", 64},   {DType::kF32, "F32", 32},       {DType::kF16, "F16", 16},
    {DType::kBF16, "BF16", 16}, {DType::kF8E4M3, "F8_E4M3", 8}, {DType::kF8E8M0, "F8_E8M0", 8},
    {DType::kI64, "I64", 64},   {DType::kI32, "I32", 32},       {DType::kI16, "I16", 16},
    {DType::kI8, "I8", 8},      {DType::kU8, "U8", 8},          {DType::kBool, "BOOL", 8},
    {DType::kI4, "I4", 4},
};

}  // namespace

std::string_view dtype_name(DType dtype) {
  for (const Entry& e : kEntries) {
    if (e.dtype == dtype) return e.name;
  }
  return "?";
}

bool dtype_from_name(std::string_view name, DType* dtype) {
  for (const Entry& e : kEntries) {
    if (e.name == name) {
      *dtype = e.dtype;
      return true;
    }
  }
  return false;
}

int dtype_bits(DType dtype) {
  for (const Entry& e : kEntries) {
    if (e.dtype == dtype) return e.bits;
  }
  return 0;
}

}  // namespace tamis
