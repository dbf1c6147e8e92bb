#include "train/replicas.h"

#include <cmath>

#include "base/error.h"
#include "kernels/adamw/adamw.h"
#include "kernels/array_ops/array_ops.h"
#include "kernels/memory.h"

namespace tamis {
namespace {

using Range = ParameterTable::Range;

template <typename T>
std::span<const std::byte> bytes_of(const T* values, int64_t count) {
  return std::as_bytes(std::span<const T>(values, static_cast<size_t>(count)));
}
template <typename T>
std::span<std::byte> writable(T* values, int64_t count) {
  return std::as_writable_bytes(std::span<T>(values, static_cast<size_t>(count)));
}

int64_t blocks(int64_t values) { return (values + kSquaresBlock - 1) / kSquaresBlock; }

}  // namespace

Replicas::Replicas(KernelContext& context, const ParameterTable& table, Group& group)
    : context_(context), table_(table), group_(group) {
  if (context.device() != nullptr && group.size() > 1) {
    throw UsageError(
        "train: --backend cuda trains on one GPU, in one process; start it without mpirun, or take "
        "--backend cpu for several ranks");
  }
}

Range Replicas::part(ParameterGroup group, int rank) const {
  const Range all = table_.range(group);
  const int64_t count = blocks(all.size());
  const auto begin_of = [&](int64_t r) {
    return std::min(all.end, all.begin + count * r / size() * kSquaresBlock);
  };
  return {begin_of(rank), begin_of(rank + 1)};
}

std::array<Range, 3> Replicas::own_parts() const {
  return {part(ParameterGroup::kModel, rank()), part(ParameterGroup::kIndexer, rank()),
          part(ParameterGroup::kBias, rank())};
}

void Replicas::add_gradients(ParameterGroup group, float* gradients, int count, float* sum) {
  const Range own = part(group, rank());
  if (size() == 1) return add_values(context_, gradients + own.begin, own.size(), sum);
  received_.resize(static_cast<size_t>(own.size() * (size() - 1)));
  std::vector<std::span<const std::byte>> to;
  std::vector<std::span<std::byte>> from;
  std::vector<const float*> parts;
  float* next = received_.data();
  for (int r = 0; r < size(); ++r) {
    const Range theirs = part(group, r);
    to.push_back(bytes_of(gradients + theirs.begin, theirs.size()));
    float* place = r == rank() ? gradients + own.begin : next;
    if (r != rank()) next += own.size();
    from.push_back(writable(place, own.size()));
    parts.push_back(place);
  }
  group_.all_to_all(to, from);
  for (int r = 0; r < count; ++r) {
    const float* g = parts[static_cast<size_t>(r)];
    for (int64_t i = 0; i < own.size(); ++i) sum[i] += g[i];
  }
}

double Replicas::norm(ParameterGroup group, const float* sum) {
  std::vector<double> squares = squares_by_block(context_, sum, part(group, rank()).size());
  std::vector<double> all(static_cast<size_t>(blocks(table_.range(group).size())));
  std::vector<std::span<const std::byte>> to(
      static_cast<size_t>(size()), bytes_of(squares.data(), static_cast<int64_t>(squares.size())));
  std::vector<std::span<std::byte>> from;
  double* next = all.data();
  for (int r = 0; r < size(); ++r) {
    const int64_t theirs = blocks(part(group, r).size());
    from.push_back(writable(next, theirs));
    next += theirs;
  }
  group_.all_to_all(to, from);
  double total = 0;
  for (const double s : all) total += s;
  return std::sqrt(total);
}

void Replicas::share(ParameterGroup group, float* values) {
  if (size() == 1) return;
  const Range own = part(group, rank());
  const std::vector<std::span<const std::byte>> to(static_cast<size_t>(size()),
                                                   bytes_of(values + own.begin, own.size()));
  std::vector<std::span<std::byte>> from;
  for (int r = 0; r < size(); ++r) {
    const Range theirs = part(group, r);
    from.push_back(writable(values + theirs.begin, theirs.size()));
  }
  group_.all_to_all(to, from);
}

void Replicas::gather(ParameterGroup group, const float* own, float* whole) {
  if (size() == 1) {
    const Range all = part(group, 0);
    return get(context_, whole + all.begin, own, all.size() * static_cast<int64_t>(sizeof(float)));
  }
  std::vector<std::span<const std::byte>> to(static_cast<size_t>(size()));
  std::vector<std::span<std::byte>> from(static_cast<size_t>(size()));
  to[0] = bytes_of(own, part(group, rank()).size());
  for (int r = 0; r < size() && rank() == 0; ++r) {
    const Range theirs = part(group, r);
    from[static_cast<size_t>(r)] = writable(whole + theirs.begin, theirs.size());
  }
  group_.all_to_all(to, from);
}

std::vector<double> Replicas::all(const std::vector<double>& own) {
  std::vector<double> out(own.size() * static_cast<size_t>(size()));
  group_.all_gather(std::as_bytes(std::span(own)), std::as_writable_bytes(std::span(out)));
  return out;
}

}  // namespace tamis
