// Ranks with a GPU each move what ranks on a CPU move, with as many GPUs as there are, up to four.
#include <gtest/gtest.h>

#include <algorithm>
#include <span>

#include "base/error.h"
#include "comm/nccl.h"
#include "kernels/memory.h"
#include "tensor/cuda/device.h"
#include "train/random.h"
#include "train/replicas.h"

namespace tamis {
namespace {

std::vector<float> draw(int rank, int64_t n) {
  Random random(3, static_cast<uint64_t>(rank));
  std::vector<float> values(static_cast<size_t>(n));
  for (float& v : values) v = static_cast<float>(random.unit() - 0.5);
  return values;
}

// What each rank has after everyone sent to everyone, in the whole group and in one that was split
// off: messages of few and of many values, of another length from each rank.
template <typename Move>
std::vector<std::vector<float>> exchanged(Group& host, Group& group, const Move& move) {
  std::vector<std::vector<float>> out;
  const std::unique_ptr<Group> half = group.split(host.rank() % 2);
  for (const int64_t n : {0, 1, 4097, 100000}) {
    out.push_back(move(group, host.rank(), n));
    out.push_back(move(*half, host.rank(), n));
  }
  group.barrier();
  return out;
}

// Rank r of the group sends n + r values to each.
void all_to_all(Group& group, int64_t n, const float* own, float* received) {
  const auto bytes = [](const auto* values, int64_t count) {
    return std::as_bytes(std::span(values, static_cast<size_t>(count)));
  };
  std::vector<std::span<const std::byte>> to;
  std::vector<std::span<std::byte>> from;
  for (int r = 0; r < group.size(); ++r) {
    to.push_back(bytes(own, n + group.rank()));
    from.push_back(std::as_writable_bytes(std::span(received, static_cast<size_t>(n + r))));
    received += n + r;
  }
  group.all_to_all(to, from);
}

int64_t total(const Group& group, int64_t n) {
  return n * group.size() + int64_t{group.size()} * (group.size() - 1) / 2;
}

std::vector<std::vector<float>> on_devices(Group& host) {
  KernelContext context(1, Backend::kCuda, host.rank());
  const std::unique_ptr<Group> devices =
      nccl_group(host, {context.device()->info().ordinal, context.device()->stream()});
  return exchanged(host, *devices, [&](Group& group, int seed, int64_t n) {
    const std::vector<float> own = draw(seed, n + group.rank());
    std::vector<float> all(static_cast<size_t>(total(group, n)));
    const auto bytes = [](const std::vector<float>& v) {
      return static_cast<int64_t>(v.size() * sizeof(float));
    };
    Buffer<float> sent, received;
    put(context, sent.resize(context, static_cast<int64_t>(own.size())), own.data(), bytes(own));
    received.resize(context, static_cast<int64_t>(all.size()));
    all_to_all(group, n, sent.data(), received.data());
    get(context, all.data(), received.data(), bytes(all));
    if (group.size() > 1) {
      EXPECT_THROW(group.all_reduce({sent.data(), own.size()}), UsageError);
    }
    return all;
  });
}

std::vector<std::vector<float>> on_host(Group& host) {
  return exchanged(host, host, [&](Group& group, int seed, int64_t n) {
    const std::vector<float> own = draw(seed, n + group.rank());
    std::vector<float> all(static_cast<size_t>(total(group, n)));
    all_to_all(group, n, own.data(), all.data());
    return all;
  });
}

TEST(NcclGroup, MovesWhatTheHostMoves) {
  const int most = std::min<int>(4, static_cast<int>(cuda_devices().size()));
  for (int ranks = 1; ranks <= most; ++ranks) {
    run_as_threads(ranks, [&](Group& group) { EXPECT_EQ(on_devices(group), on_host(group)); });
  }
}

}  // namespace
}  // namespace tamis
