// Every call of a Group over awkward sizes, recorded, so that two transports can be compared.
#pragma once

#include <cstddef>
#include <vector>

#include "comm/group.h"

namespace tamis {

// The bytes of all results of this rank, in order. Inputs depend on rank and size only.
std::vector<std::byte> exercise(Group& group);

}  // namespace tamis
