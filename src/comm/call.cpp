#include "comm/call.h"

#include <fmt/format.h>

namespace tamis {
namespace {

const char* op_name(Op op) {
  switch (op) {
    case Op::kAllReduce:
      return "all_reduce";
    case Op::kReduceScatter:
      return "reduce_scatter";
    case Op::kAllGather:
      return "all_gather";
    case Op::kAllToAll:
      return "all_to_all";
    case Op::kBroadcast:
      return "broadcast";
    case Op::kBarrier:
      return "barrier";
    case Op::kSplit:
      return "split";
    case Op::kSend:
      return "send";
    case Op::kRecv:
      return "recv";
    case Op::kFinish:
      return "the end of the group";
  }
  return "an unknown call";
}

bool agrees(int rank, const Call& mine, int other, const Call& theirs) {
  if (mine.op == Op::kRecv) {
    return theirs.op == Op::kSend && theirs.peer == rank && mine.peer == other;
  }
  return mine.op == theirs.op && mine.number == theirs.number && mine.bytes == theirs.bytes &&
         mine.peer == theirs.peer;
}

}  // namespace

std::string describe(const Call& call) {
  switch (call.op) {
    case Op::kSend:
      return fmt::format("send of {} bytes to rank {}", call.bytes, call.peer);
    case Op::kRecv:
      return fmt::format("recv of {} bytes from rank {}", call.bytes, call.peer);
    case Op::kBroadcast:
      return fmt::format("call {}, broadcast of {} bytes from rank {}", call.number, call.bytes,
                         call.peer);
    case Op::kAllReduce:
    case Op::kReduceScatter:
    case Op::kAllGather:
      return fmt::format("call {}, {} of {} bytes", call.number, op_name(call.op), call.bytes);
    default:
      return fmt::format("call {}, {}", call.number, op_name(call.op));
  }
}

std::string mismatch(int rank, const Call& mine, int other, const Call& theirs, int64_t expected) {
  if (!agrees(rank, mine, other, theirs)) {
    return fmt::format("ranks do not make the same calls: rank {} is in {}, but rank {} is in {}",
                       rank, describe(mine), other, describe(theirs));
  }
  if (theirs.part != expected) {
    return fmt::format("rank {} in {}: wants {} bytes from rank {}, which sends {}", rank,
                       describe(mine), expected, other, theirs.part);
  }
  return "";
}

}  // namespace tamis
