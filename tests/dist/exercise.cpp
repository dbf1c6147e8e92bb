#include "dist/exercise.h"

#include <cmath>

namespace tamis {
namespace {

// Values whose sum depends on the order: magnitudes from 2^-20 to 2^20, both signs.
std::vector<float> values(size_t count, int rank, uint32_t salt) {
  std::vector<float> result(count);
  uint32_t state = 2654435761u * (static_cast<uint32_t>(rank) + 1) + salt;
  for (float& value : result) {
    state = state * 1664525u + 1013904223u;
    const int exponent = static_cast<int>(state >> 26) % 41 - 20;
    value = std::ldexp(static_cast<float>(static_cast<int32_t>(state)), exponent - 31);
  }
  return result;
}

class Record {
 public:
  template <typename T>
  void add(const std::vector<T>& results) {
    const auto bytes = std::as_bytes(std::span(results));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

void reduce(Group& group, size_t count, Record& record) {
  std::vector<float> data = values(count, group.rank(), 1);
  group.all_reduce(data);
  record.add(data);
}

void scatter_and_gather(Group& group, size_t count, Record& record) {
  const auto ranks = static_cast<size_t>(group.size());
  std::vector<float> part(count);
  group.reduce_scatter(values(count * ranks, group.rank(), 2), part);
  record.add(part);
  std::vector<float> all(count * ranks);
  group.all_gather(part, all);
  record.add(all);
}

void all_to_all(Group& group, size_t count, Record& record) {
  const auto rank = static_cast<size_t>(group.rank());
  std::vector<std::vector<float>> out, in;
  std::vector<std::span<const std::byte>> to;
  std::vector<std::span<std::byte>> from;
  for (size_t r = 0; r < static_cast<size_t>(group.size()); ++r) {
    // Another size for each ordered pair.
    out.push_back(values(count * (rank + 2 * r), group.rank(), static_cast<uint32_t>(r)));
    in.emplace_back(count * (r + 2 * rank));
    to.push_back(std::as_bytes(std::span(out.back())));
    from.push_back(std::as_writable_bytes(std::span(in.back())));
  }
  group.all_to_all(to, from);
  for (const auto& part : in) record.add(part);
}

void broadcast(Group& group, size_t count, Record& record) {
  for (int root = 0; root < group.size(); ++root) {
    std::vector<float> data = values(count, group.rank(), 3);
    group.broadcast(std::as_writable_bytes(std::span(data)), root);
    record.add(data);
  }
}

// Each rank but the last sends to the next.
void pass_on(Group& group, size_t count, Record& record) {
  std::vector<float> data = values(count, group.rank(), 4);
  if (group.rank() > 0) {
    group.recv(std::as_writable_bytes(std::span(data)), group.rank() - 1);
  }
  if (group.rank() + 1 < group.size()) {
    group.send(std::as_bytes(std::span(data)), group.rank() + 1);
  }
  record.add(data);
}

}  // namespace

std::vector<std::byte> exercise(Group& group) {
  Record record;
  // 4096 and 4097: both ways of all_reduce. 4194307: more than one block.
  for (size_t count : {0, 1, 2, 97, 4096, 4097, 100003, 4194307}) reduce(group, count, record);
  for (size_t count : {0, 1, 97, 30011}) {
    scatter_and_gather(group, count, record);
    all_to_all(group, count, record);
    broadcast(group, count, record);
    pass_on(group, count, record);
    group.barrier();
  }
  const auto part = group.split(-(group.rank() % 2));
  record.add(std::vector<int>{part->rank(), part->size()});
  for (size_t count : {0, 97, 4097}) reduce(*part, count, record);
  part->barrier();
  return record.take();
}

}  // namespace tamis
