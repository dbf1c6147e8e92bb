#include "train/replicas.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "checkpoint/checksum.h"
#include "comm/nccl.h"
#include "kernels/adamw/adamw.h"
#include "kernels/array_ops/array_ops.h"
#include "kernels/memory.h"
#include "tensor/cuda/device.h"

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

// Calls body(run) for the runs of a piece that lie in `range`, cut to it.
template <typename Body>
void for_each_run(const Piece& p, const Range& range, const Body& body) {
  if (p.length == 0) return;
  // The rows that end after range.begin and begin before range.end.
  const int64_t first = std::max<int64_t>(0, (range.begin - p.whole - p.length) / p.stride);
  for (int64_t row = first; row < p.rows; ++row) {
    const int64_t begin = p.whole + row * p.stride;
    if (begin >= range.end) break;
    const int64_t from = std::max(begin, range.begin);
    const int64_t to = std::min(begin + p.length, range.end);
    if (from < to) body(p.own + row * p.length + from - begin, from, to - from);
  }
}

// Null on a CPU, and for one rank: nothing moves.
std::unique_ptr<Group> group_of_devices(KernelContext& context, Group& host) {
  if (context.device() == nullptr || host.size() == 1) return nullptr;
  return nccl_group(host, {context.device()->info().ordinal, context.device()->stream()});
}

}  // namespace

Replicas::Replicas(KernelContext& context, const ModelConfig& config, const ParameterTable& table,
                   Group& group, int expert_parallel, int tensor_parallel)
    : context_(context),
      table_(table),
      group_(group),
      device_group_(group_of_devices(context, group)),
      values_(device_group_ ? *device_group_ : group),
      layout_{group.size(), expert_parallel, tensor_parallel} {
  check_layout(layout_, config);
  if (context.device() != nullptr && layout_.divided()) {
    throw UsageError(
        "train: expert_parallel and tensor_parallel divide a model on CPUs alone; leave them at 1 "
        "with --backend cuda");
  }
  if (!layout_.divided()) return;
  tables_.push_back(table_of_rank(config, layout_, rank()));
  for (int r = 0; r < size(); ++r) {
    pieces_.push_back(pieces_of_rank(table_, table_of_rank(config, layout_, r), layout_, r));
  }
  make_groups();
}

void Replicas::make_groups() {
  const int data = layout_.data_index(rank()), part = layout_.tensor_index(rank());
  if (layout_.expert > 1) experts_ = group_.split(data / layout_.expert * layout_.tensor + part);
  if (layout_.tensor > 1) tensor_ = group_.split(data);
}

int64_t Replicas::gradient_size() const {
  return own_table().size() + (layout_.expert - 1) * own_table().experts().size();
}

void Replicas::take_own(const float* whole, float* own) const {
  if (!layout_.divided()) {
    std::copy_n(whole, table_.size(), own);
    return;
  }
  for (const Piece& p : pieces_[static_cast<size_t>(rank())]) {
    for_each_run(p, {0, table_.size()}, [&](int64_t to, int64_t from, int64_t length) {
      std::copy_n(whole + from, length, own + to);
    });
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
  if (layout_.divided()) return add_divided(group, gradients, count, sum);
  std::vector<std::span<const std::byte>> to;
  std::vector<std::span<std::byte>> from;
  std::vector<const float*> parts;
  float* next = gathered_.resize(context_, own.size() * (size() - 1));
  for (int r = 0; r < size(); ++r) {
    const Range theirs = part(group, r);
    to.push_back(bytes_of(gradients + theirs.begin, theirs.size()));
    float* place = r == rank() ? gradients + own.begin : next;
    if (r != rank()) next += own.size();
    from.push_back(writable(place, own.size()));
    parts.push_back(place);
  }
  values_.all_to_all(to, from);
  for (int r = 0; r < count; ++r) {
    add_values(context_, parts[static_cast<size_t>(r)], own.size(), sum);
  }
}

std::vector<Replicas::Run> Replicas::runs_in(int rank, ParameterGroup group,
                                             const Range& range) const {
  std::vector<Run> runs;
  for (const Piece& p : pieces_[static_cast<size_t>(rank)]) {
    if (p.group != group) continue;
    for_each_run(p, range, [&](int64_t own, int64_t whole, int64_t length) {
      runs.push_back({own, whole, length});
    });
  }
  return runs;
}

// What a rank's gradients tell of `range`: of its own micro-batch all that is not an expert's, of
// the micro-batches of its expert group what its experts got from them.
std::vector<Replicas::Contribution> Replicas::contributions(int rank, ParameterGroup group,
                                                            int count, const Range& range) const {
  const int data = layout_.data_index(rank), index = layout_.expert_index(rank);
  const int64_t own_size = tables_.front().size(), block = tables_.front().experts().size();
  std::vector<Contribution> out;
  for (const Piece& p : pieces_[static_cast<size_t>(rank)]) {
    if (p.group != group || p.copy) continue;
    for (int e = 0; e < layout_.expert; ++e) {
      const int other = data - index + e;
      if (other >= count || (other != data && !p.expert)) continue;
      // Where block e lies, see TrainModel::Values.
      const int64_t shift =
          e == index ? 0
                     : own_size + (e < index ? e : e - 1) * block - tables_.front().experts().begin;
      for_each_run(p, range, [&](int64_t own, int64_t whole, int64_t length) {
        out.push_back({other, {own + shift, whole, length}});
      });
    }
  }
  return out;
}

// Each rank sends each other one what it has of its part, run after run.
void Replicas::add_divided(ParameterGroup group, const float* gradients, int count, float* sum) {
  const auto ranks = static_cast<size_t>(size());
  std::vector<int64_t> sizes(ranks), wanted(ranks);
  std::vector<std::vector<Contribution>> theirs(ranks);
  sent_.clear();
  for (int r = 0; r < size(); ++r) {
    const auto at = static_cast<size_t>(r);
    for (const Contribution& c : contributions(rank(), group, count, part(group, r))) {
      sent_.insert(sent_.end(), gradients + c.run.own, gradients + c.run.own + c.run.length);
      sizes[at] += c.run.length;
    }
    theirs[at] = contributions(r, group, count, part(group, rank()));
    for (const Contribution& c : theirs[at]) wanted[at] += c.run.length;
  }
  exchange(sizes, wanted);
  struct Term {
    int data;
    const float* from;
    int64_t to, length;
  };
  std::vector<Term> terms;
  const float* next = received_.data();
  for (const std::vector<Contribution>& of_rank : theirs) {
    for (const Contribution& c : of_rank) {
      terms.push_back({c.data, next, c.run.whole - part(group, rank()).begin, c.run.length});
      next += c.run.length;
    }
  }
  std::stable_sort(terms.begin(), terms.end(),
                   [](const Term& a, const Term& b) { return a.data < b.data; });
  for (const Term& t : terms) {
    for (int64_t i = 0; i < t.length; ++i) sum[t.to + i] += t.from[i];
  }
}

// sent_, cut by `sizes`, to the ranks; received_ gets what they sent, `wanted` values of each.
void Replicas::exchange(const std::vector<int64_t>& sizes, const std::vector<int64_t>& wanted) {
  int64_t total = 0;
  for (const int64_t n : wanted) total += n;
  received_.resize(static_cast<size_t>(total));
  std::vector<std::span<const std::byte>> to;
  std::vector<std::span<std::byte>> from;
  const float* out = sent_.data();
  float* in = received_.data();
  for (size_t r = 0; r < sizes.size(); ++r) {
    to.push_back(bytes_of(out, sizes[r]));
    from.push_back(writable(in, wanted[r]));
    out += sizes[r];
    in += wanted[r];
  }
  group_.all_to_all(to, from);
}

void Replicas::distribute(ParameterGroup group, const float* moved, float* values) {
  const auto ranks = static_cast<size_t>(size());
  const Range own = part(group, rank());
  std::vector<int64_t> sizes(ranks), wanted(ranks);
  sent_.clear();
  for (int r = 0; r < size(); ++r) {
    for (const Run& run : runs_in(r, group, own)) {
      const float* begin = moved + run.whole - own.begin;
      sent_.insert(sent_.end(), begin, begin + run.length);
      sizes[static_cast<size_t>(r)] += run.length;
    }
    for (const Run& run : runs_in(rank(), group, part(group, r))) {
      wanted[static_cast<size_t>(r)] += run.length;
    }
  }
  exchange(sizes, wanted);
  const float* next = received_.data();
  for (int r = 0; r < size(); ++r) {
    for (const Run& run : runs_in(rank(), group, part(group, r))) {
      std::copy_n(next, run.length, values + run.own);
      next += run.length;
    }
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
  values_.all_to_all(to, from);
}

void Replicas::gather(ParameterGroup group, const float* own, float* whole) {
  if (size() == 1) {
    const Range all = part(group, 0);
    return get(context_, whole + all.begin, own, all.size() * static_cast<int64_t>(sizeof(float)));
  }
  const int64_t size_of_own = part(group, rank()).size();
  std::vector<float> on_host;
  if (context_.device() != nullptr) {
    on_host.resize(static_cast<size_t>(size_of_own));
    get(context_, on_host.data(), own, size_of_own * static_cast<int64_t>(sizeof(float)));
    own = on_host.data();
  }
  std::vector<std::span<const std::byte>> to(static_cast<size_t>(size()));
  std::vector<std::span<std::byte>> from(static_cast<size_t>(size()));
  to[0] = bytes_of(own, size_of_own);
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

void Replicas::expect_same(const std::string& text, const std::string& message) {
  const std::string own = checksum_hex(std::as_bytes(std::span(text)));
  std::string all(own.size() * static_cast<size_t>(size()), ' ');
  group_.all_gather(std::as_bytes(std::span(own)), std::as_writable_bytes(std::span(all)));
  for (size_t r = 0; r < static_cast<size_t>(size()); ++r) {
    if (all.compare(r * own.size(), own.size(), own) != 0) throw InputError(message);
  }
}

}  // namespace tamis
