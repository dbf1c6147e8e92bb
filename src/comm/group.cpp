// The collectives, once for all transports: each is one or two exchanges, and the only place that
// adds is add_in_rank_order. A library's own all-reduce (MPI_Allreduce) may choose its order by
// message size, topology and rank count, so its bits differ between transports, and between ranks
// in theory; here the order is that of the ranks, whatever the transport.
#include "comm/group.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "comm/call.h"

namespace tamis {
namespace {

// Up to here every rank sends all it has to all others: one round trip, size - 1 times the bytes.
constexpr int64_t kWholeFloats = 4096;
// Larger sums go block by block, so that scratch memory stays bounded (16 MiB).
constexpr int64_t kBlockFloats = int64_t{1} << 22;

int64_t length(std::span<const float> data) { return static_cast<int64_t>(data.size()); }

// out = ((rows[0] + rows[1]) + rows[2]) + ...; out may be one of the rows.
void add_in_rank_order(const std::vector<const float*>& rows, std::span<float> out) {
  // In strips that stay in the first cache level: each row is then read once from memory.
  constexpr size_t kStrip = 1024;
  float sums[kStrip];
  for (size_t begin = 0; begin < out.size(); begin += kStrip) {
    const size_t count = std::min(kStrip, out.size() - begin);
    std::copy_n(rows[0] + begin, count, sums);
    for (size_t row = 1; row < rows.size(); ++row) {
      const float* values = rows[row] + begin;
      for (size_t i = 0; i < count; ++i) sums[i] += values[i];
    }
    std::copy_n(sums, count, out.data() + begin);
  }
}

// Where part `index` of `count` floats in `parts` near-equal parts begins.
int64_t part_begin(int64_t count, int index, int parts) {
  return count / parts * index + std::min<int64_t>(count % parts, index);
}

}  // namespace

void Group::check_peer(int peer, const char* what) const {
  if (peer < 0 || peer >= size_) {
    throw UsageError(
        fmt::format("rank {}: {} {}: the group has ranks 0 to {}", rank_, what, peer, size_ - 1));
  }
}

void Group::all_reduce(std::span<float> data) {
  const auto bytes = static_cast<int64_t>(data.size_bytes());
  const Call call{.op = Op::kAllReduce, .number = ++calls_, .bytes = bytes};
  if (size_ == 1) return;
  if (length(data) <= kWholeFloats) {
    reduce_whole(call, data);
    return;
  }
  while (!data.empty()) {
    const size_t block = std::min<size_t>(data.size(), kBlockFloats);
    reduce_by_parts(call, data.first(block));
    data = data.subspan(block);
  }
}

// Everything to everyone; each rank adds for itself.
void Group::reduce_whole(const Call& call, std::span<float> data) {
  scratch_.resize(data.size() * static_cast<size_t>(size_));
  gather(call, std::as_bytes(data), std::as_writable_bytes(std::span(scratch_)));
  std::vector<const float*> rows;
  for (int r = 0; r < size_; ++r) {
    rows.push_back(scratch_.data() + data.size() * static_cast<size_t>(r));
  }
  add_in_rank_order(rows, data);
}

// Each rank adds one part and sends it to the others: the bytes of a ring, in two round trips, and
// the order stays free to be the ranks' own (a ring adds each part in another rotation).
void Group::reduce_by_parts(const Call& call, std::span<float> data) {
  std::vector<std::span<float>> parts;
  std::vector<std::span<const std::byte>> to;
  for (int r = 0; r < size_; ++r) {
    const int64_t begin = part_begin(length(data), r, size_);
    const int64_t end = part_begin(length(data), r + 1, size_);
    parts.push_back(data.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
    to.push_back(std::as_bytes(parts.back()));
  }
  const std::span<float> own = parts[static_cast<size_t>(rank_)];
  scratch_.resize(own.size() * static_cast<size_t>(size_));
  std::vector<std::span<std::byte>> from;
  std::vector<const float*> rows;
  for (int r = 0; r < size_; ++r) {
    const auto row = std::span(scratch_).subspan(own.size() * static_cast<size_t>(r), own.size());
    from.push_back(std::as_writable_bytes(row));
    rows.push_back(row.data());
  }
  exchange(call, to, from);
  add_in_rank_order(rows, own);

  for (int r = 0; r < size_; ++r) {
    to[static_cast<size_t>(r)] = std::as_bytes(own);
    from[static_cast<size_t>(r)] = std::as_writable_bytes(parts[static_cast<size_t>(r)]);
  }
  exchange(call, to, from);
}

// out = the sum of what the ranks have for this one; part r of `in` begins at r * stride.
void Group::sum_part(const Call& call, std::span<const float> in, int64_t stride,
                     std::span<float> out) {
  scratch_.resize(out.size() * static_cast<size_t>(size_));
  std::vector<std::span<const std::byte>> to;
  std::vector<std::span<std::byte>> from;
  std::vector<const float*> rows;
  for (int r = 0; r < size_; ++r) {
    to.push_back(std::as_bytes(in.subspan(static_cast<size_t>(r * stride), out.size())));
    const auto row = std::span(scratch_).subspan(out.size() * static_cast<size_t>(r), out.size());
    from.push_back(std::as_writable_bytes(row));
    rows.push_back(row.data());
  }
  exchange(call, to, from);
  add_in_rank_order(rows, out);
}

void Group::reduce_scatter(std::span<const float> in, std::span<float> out) {
  if (length(in) != length(out) * size_) {
    throw UsageError(fmt::format("rank {}: reduce_scatter: in has {} values, want {} x {} ranks",
                                 rank_, in.size(), out.size(), size_));
  }
  const auto bytes = static_cast<int64_t>(in.size_bytes());
  const Call call{.op = Op::kReduceScatter, .number = ++calls_, .bytes = bytes};
  const int64_t stride = length(out);
  const int64_t block = std::max<int64_t>(1, kBlockFloats / size_);
  // At least one exchange, so that an empty call is compared too.
  int64_t begin = 0;
  do {
    const int64_t count = std::min(block, stride - begin);
    const auto rest = in.subspan(static_cast<size_t>(begin));
    sum_part(call, rest, stride,
             out.subspan(static_cast<size_t>(begin), static_cast<size_t>(count)));
    begin += count;
  } while (begin < stride);
}

void Group::gather(const Call& call, std::span<const std::byte> in, std::span<std::byte> out) {
  std::vector<std::span<const std::byte>> to(static_cast<size_t>(size_), in);
  std::vector<std::span<std::byte>> from;
  for (int r = 0; r < size_; ++r) {
    from.push_back(out.subspan(in.size() * static_cast<size_t>(r), in.size()));
  }
  exchange(call, to, from);
}

void Group::all_gather(std::span<const std::byte> in, std::span<std::byte> out) {
  if (in.size() * static_cast<size_t>(size_) != out.size()) {
    throw UsageError(fmt::format("rank {}: all_gather: out has {} bytes, want {} x {} ranks", rank_,
                                 out.size(), in.size(), size_));
  }
  const auto bytes = static_cast<int64_t>(in.size());
  gather({.op = Op::kAllGather, .number = ++calls_, .bytes = bytes}, in, out);
}

void Group::all_gather(std::span<const float> in, std::span<float> out) {
  all_gather(std::as_bytes(in), std::as_writable_bytes(out));
}

void Group::all_to_all(Outgoing to, Incoming from) {
  const auto ranks = static_cast<size_t>(size_);
  if (to.size() != ranks || from.size() != ranks) {
    throw UsageError(
        fmt::format("rank {}: all_to_all: got {} and {} parts, want one for each of "
                    "{} ranks",
                    rank_, to.size(), from.size(), size_));
  }
  const auto self = static_cast<size_t>(rank_);
  if (to[self].size() != from[self].size()) {
    throw UsageError(fmt::format("rank {}: all_to_all: sends itself {} bytes, wants {}", rank_,
                                 to[self].size(), from[self].size()));
  }
  exchange({.op = Op::kAllToAll, .number = ++calls_}, to, from);
}

void Group::broadcast(std::span<std::byte> data, int root) {
  check_peer(root, "broadcast from rank");
  const auto ranks = static_cast<size_t>(size_);
  std::vector<std::span<const std::byte>> to(ranks);
  std::vector<std::span<std::byte>> from(ranks);
  if (rank_ == root) {
    std::fill(to.begin(), to.end(), data);
    to[static_cast<size_t>(rank_)] = {};
  } else {
    from[static_cast<size_t>(root)] = data;
  }
  const auto bytes = static_cast<int64_t>(data.size());
  exchange({.op = Op::kBroadcast, .number = ++calls_, .bytes = bytes, .peer = root}, to, from);
}

void Group::barrier() {
  const auto ranks = static_cast<size_t>(size_);
  const std::vector<std::span<const std::byte>> to(ranks);
  const std::vector<std::span<std::byte>> from(ranks);
  exchange({.op = Op::kBarrier, .number = ++calls_}, to, from);
}

void Group::send(std::span<const std::byte> data, int to) {
  check_peer(to, "send to rank");
  if (to == rank_) throw UsageError(fmt::format("rank {}: send to itself", rank_));
  const auto bytes = static_cast<int64_t>(data.size());
  send_to({.op = Op::kSend, .number = calls_, .bytes = bytes, .peer = to, .part = bytes}, data, to);
}

void Group::recv(std::span<std::byte> data, int from) {
  check_peer(from, "recv from rank");
  if (from == rank_) throw UsageError(fmt::format("rank {}: recv from itself", rank_));
  const auto bytes = static_cast<int64_t>(data.size());
  recv_from({.op = Op::kRecv, .number = calls_, .bytes = bytes, .peer = from}, data, from);
}

std::unique_ptr<Group> Group::split(int colour) {
  std::vector<int> colours(static_cast<size_t>(size_));
  gather({.op = Op::kSplit, .number = ++calls_}, std::as_bytes(std::span(&colour, 1)),
         std::as_writable_bytes(std::span(colours)));
  std::vector<int> members;
  for (int r = 0; r < size_; ++r) {
    if (colours[static_cast<size_t>(r)] == colour) members.push_back(r);
  }
  return part(colour, members);
}

}  // namespace tamis
