// What one rank says about the call it is in. Every transport compares it between ranks before
// data moves, so that ranks that took different ways get an error instead of wrong numbers.
#pragma once

#include <cstdint>
#include <string>

namespace tamis {

enum class Op : int64_t {
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kAllToAll,
  kBroadcast,
  kBarrier,
  kSplit,
  kSend,
  kRecv,
  kFinish,  // MPI only: the rank destroys its world group
};

// Plain bytes: MPI sends it as it is.
struct Call {
  Op op = Op::kBarrier;
  int64_t number = 0;  // how many collective calls this group has made, this one included
  int64_t bytes = 0;   // of the whole call; 0 where ranks may differ (all_to_all)
  int64_t peer = -1;   // root of a broadcast, other side of send and recv
  int64_t part = 0;    // bytes that this rank sends to the one that reads this
};

// "call 3, all_reduce of 40 bytes"
std::string describe(const Call& call);

// Empty when rank `other`, in `theirs`, does what rank `rank`, in `mine`, needs: the same
// collective call, or the send to a recv, with `expected` bytes for this rank. Else the message.
std::string mismatch(int rank, const Call& mine, int other, const Call& theirs, int64_t expected);

}  // namespace tamis
