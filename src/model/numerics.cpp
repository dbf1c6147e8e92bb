#include "model/numerics.h"

#include "base/error.h"
#include "kernels/grouped_linear/grouped_linear.h"

namespace tamis {

Precision precision_from_name(std::string_view name) {
  if (name == "exact") return Precision::kExact;
  if (name == "native") return Precision::kNative;
  throw UsageError("unknown precision '" + printable(name) + "': want exact or native");
}

void Numerics::project(KernelContext& context, std::span<const LinearArgs> args) const {
  projections(context, args, native(), ue8m0);
}

}  // namespace tamis
