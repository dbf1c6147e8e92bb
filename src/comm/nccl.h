// Ranks that have a GPU each. The spans of such a group's calls are device memory, and its calls
// return before the data has moved: they are ordered on the rank's stream. It moves and does not
// add: all_reduce and reduce_scatter of several ranks raise UsageError, because NCCL's sums have an
// order that depends on topology and size; send the parts by all_to_all and add them on the device,
// in the order of ranks.
//
//   const auto values = nccl_group(*world, {device.info().ordinal, device.stream()});
//
// Of NCCL it uses messages between two ranks; libnccl is loaded when the first group is made.
#pragma once

#include <memory>

#include "comm/group.h"

struct CUstream_st;

namespace tamis {

struct DeviceRank {
  int ordinal = 0;  // the current device of the calling thread
  CUstream_st* stream = nullptr;
};

// Collective over `host`, which it keeps: calls are compared there before data moves. DeviceError
// if NCCL cannot be loaded or fails, UsageError in a build without it (nccl.h was not found).
std::unique_ptr<Group> nccl_group(Group& host, DeviceRank device);

}  // namespace tamis
