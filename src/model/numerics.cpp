#include "model/numerics.h"

#include "base/error.h"
#include "kernels/grouped_linear/grouped_linear.h"

namespace tamis {

Precision precision_from_name(std::string_view name) {
  if (name == "exact") return Precision::kExact;
  if (name == "native") return Precision::kNative;
  if (name == "int8") return Precision::kInt8;
  throw UsageError("unknown precision '" + printable(name) + "': want exact, native or int8");
}

std::string_view precision_name(Precision precision) {
  switch (precision) {
    case Precision::kExact:
      return "exact";
    case Precision::kNative:
      return "native";
    case Precision::kInt8:
      return "int8";
  }
  return "";
}

void Numerics::project(KernelContext& context, std::span<const LinearArgs> args) const {
  projections(context, args, native(), ue8m0, int8());
}

}  // namespace tamis
