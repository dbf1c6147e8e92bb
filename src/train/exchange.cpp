#include "train/exchange.h"

#include <algorithm>

namespace tamis {
namespace {

template <typename T>
std::span<const std::byte> bytes_of(const T* values, int64_t count) {
  return std::as_bytes(std::span<const T>(values, static_cast<size_t>(count)));
}
template <typename T>
std::span<std::byte> writable(T* values, int64_t count) {
  return std::as_writable_bytes(std::span<T>(values, static_cast<size_t>(count)));
}

// The first row of rank r's experts among this rank's own pairs.
template <typename T>
int64_t pairs_before(const Pass<T>& p, int64_t l, int r) {
  const int64_t experts = p.config.num_experts;
  const int64_t* offsets = p.state.expert_offsets.data() + l * (experts + 1);
  return offsets[experts / p.groups.experts->size() * r];
}

}  // namespace

template <typename T>
void exchange_counts(Pass<T>& p, int64_t l) {
  Group& group = *p.groups.experts;
  const auto experts = static_cast<size_t>(p.config.num_experts);
  const size_t ranks = static_cast<size_t>(group.size()), own = experts / ranks;
  const int64_t* offsets = p.state.expert_offsets.data() + l * (p.config.num_experts + 1);
  std::vector<int64_t> all(ranks * (experts + 1));
  group.all_gather(bytes_of(offsets, p.config.num_experts + 1),
                   std::as_writable_bytes(std::span(all)));
  SourceRows& sources = p.layer(l).sources;
  sources.first.assign(1, 0);
  sources.offsets.assign(ranks, {});
  for (size_t r = 0; r < ranks; ++r) {
    const int64_t* theirs =
        all.data() + r * (experts + 1) + own * static_cast<size_t>(group.rank());
    for (size_t e = 0; e <= own; ++e) sources.offsets[r].push_back(theirs[e] - theirs[0]);
    sources.first.push_back(sources.first.back() + sources.offsets[r].back());
  }
}

template <typename T>
int64_t received_rows(const Pass<T>& p, int64_t l) {
  return p.layer(l).sources.first.back();
}

template <typename T>
void send_to_experts(Pass<T>& p, int64_t l, const T* rows, int64_t width, T* received) {
  const std::vector<int64_t>& first = p.layer(l).sources.first;
  std::vector<std::span<const std::byte>> to;
  std::vector<std::span<std::byte>> from;
  for (int r = 0; r < p.groups.experts->size(); ++r) {
    const int64_t begin = pairs_before(p, l, r), end = pairs_before(p, l, r + 1);
    to.push_back(bytes_of(rows + begin * width, (end - begin) * width));
    const auto at = static_cast<size_t>(r);
    from.push_back(writable(received + first[at] * width, (first[at + 1] - first[at]) * width));
  }
  p.groups.experts->all_to_all(to, from);
}

template <typename T>
void return_from_experts(Pass<T>& p, int64_t l, const T* received, int64_t width, T* rows) {
  const std::vector<int64_t>& first = p.layer(l).sources.first;
  std::vector<std::span<const std::byte>> to;
  std::vector<std::span<std::byte>> from;
  for (int r = 0; r < p.groups.experts->size(); ++r) {
    const int64_t begin = pairs_before(p, l, r), end = pairs_before(p, l, r + 1);
    from.push_back(writable(rows + begin * width, (end - begin) * width));
    const auto at = static_cast<size_t>(r);
    to.push_back(bytes_of(received + first[at] * width, (first[at + 1] - first[at]) * width));
  }
  p.groups.experts->all_to_all(to, from);
}

template <>
void add_over_tensor_group(const Pass<float>& p, float* values, int64_t n) {
  if (p.groups.tensor == nullptr) return;
  p.groups.tensor->all_reduce({values, static_cast<size_t>(n)});
}
template <>
void add_over_tensor_group(const Pass<double>& p, double* values, int64_t n) {
  if (p.groups.tensor == nullptr) return;
  const auto count = static_cast<size_t>(n), ranks = static_cast<size_t>(p.groups.tensor->size());
  std::vector<double> all(count * ranks);
  p.groups.tensor->all_gather(bytes_of(values, n), std::as_writable_bytes(std::span(all)));
  std::copy_n(all.data(), count, values);
  for (size_t i = count; i < all.size(); ++i) values[i % count] += all[i];
}

template <typename T>
void gather_columns(const Pass<T>& p, const T* own, int64_t rows, int64_t width, Buffer<T>& all) {
  const int64_t ranks = p.groups.tensor->size(), n = rows * width;
  std::vector<T> parts(static_cast<size_t>(n * ranks));
  p.groups.tensor->all_gather(bytes_of(own, n), std::as_writable_bytes(std::span(parts)));
  T* to = all.resize(p.kernels, n * ranks);
  for (int64_t r = 0; r < ranks; ++r) {
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(parts.data() + r * n + row * width, width, to + (row * ranks + r) * width);
    }
  }
}

#define TAMIS_INSTANTIATE(T)                                                   \
  template void exchange_counts(Pass<T>&, int64_t);                            \
  template int64_t received_rows(const Pass<T>&, int64_t);                     \
  template void send_to_experts(Pass<T>&, int64_t, const T*, int64_t, T*);     \
  template void return_from_experts(Pass<T>&, int64_t, const T*, int64_t, T*); \
  template void gather_columns(const Pass<T>&, const T*, int64_t, int64_t, Buffer<T>&);
TAMIS_INSTANTIATE(float)
TAMIS_INSTANTIATE(double)
#undef TAMIS_INSTANTIATE

}  // namespace tamis
