#include "model/staging.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/memory.h"

namespace tamis {
namespace {

constexpr int64_t kAlignment = 16;

// Lays arrays one after the other into memory that is uploaded as one piece. The first pass, with
// no memory, only counts.
class Packer {
 public:
  Packer(std::byte* host, const std::byte* device) : host_(host), device_(device) {}

  // Where values lie on the device, and where they are to be written now: null in the first pass.
  template <typename T>
  struct Room {
    T* host;
    const T* device;
  };

  template <typename T>
  Room<T> room(int64_t count) {
    const Room<T> r{host_ == nullptr ? nullptr : reinterpret_cast<T*>(host_ + size_),
                    reinterpret_cast<const T*>(device_ + size_)};
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    size_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return r;
  }
  template <typename T>
  const T* put(const T* values, int64_t count) {
    const Room<T> r = room<T>(count);
    if (r.host != nullptr && count > 0) {
      std::memcpy(r.host, values, static_cast<size_t>(count) * sizeof(T));
    }
    return r.device;
  }
  int64_t size() const { return size_; }

 private:
  std::byte* host_;
  const std::byte* device_;
  int64_t size_ = 0;
};

// Pages that a sequence of the batch uses: those up to its last token.
int64_t pages_of(const Batch& b, const BatchSequence& s) {
  return b.tokens.position[s.first_token + s.num_tokens - 1] / kPageTokens + 1;
}

// One more than the largest number of a sequence.
int64_t numbers(const Batch& b) {
  int32_t most = -1;
  for (const BatchSequence& s : b.sequences) {
    most = std::max(most, b.tokens.sequence[s.first_token]);
  }
  return most + int64_t{1};
}

// A power of two not below any position: so that what a device sizes by it serves many steps.
int64_t longest(const TokenMap& tokens) {
  if (tokens.num_tokens == 0) return 0;
  const int32_t last = *std::max_element(tokens.position, tokens.position + tokens.num_tokens);
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(last) + 1));
}

}  // namespace

StagedBatch::StagedBatch(KernelContext& context, const Batch& batch, int64_t vocab,
                         Activations& act)
    : tokens(batch.tokens),
      ids(batch.ids),
      logit_rows(batch.logit_rows.data()),
      logits(batch.logits),
      failed(batch.failed_layer),
      context_(context),
      batch_(batch),
      logit_values_(static_cast<int64_t>(batch.logit_rows.size()) * vocab) {
  tokens.max_context = longest(batch.tokens);
  std::fill_n(batch.failed_layer, batch.sequences.size(), -1);
  if (context.device() == nullptr) return;
  upload(act);
  // The marks lie behind the logits, so that one copy brings both.
  const auto sequences = static_cast<int64_t>(batch.sequences.size());
  logits = act.results.get(logit_values_ + sequences);
  failed = reinterpret_cast<int32_t*>(logits + logit_values_);
  context.device()->fill(failed, 0xFF, sequences * static_cast<int64_t>(sizeof(int32_t)));
}

void StagedBatch::upload(Activations& act) {
  const int64_t n = tokens.num_tokens;
  const auto pack = [&](Packer& p) {
    ids = p.put(batch_.ids, n);
    tokens.sequence = p.put(batch_.tokens.sequence, n);
    tokens.position = p.put(batch_.tokens.position, n);
    logit_rows = p.put(batch_.logit_rows.data(), static_cast<int64_t>(batch_.logit_rows.size()));
    const Packer::Room<KvSequence> tables = p.room<KvSequence>(numbers(batch_));
    tokens.sequences = tables.device;
    // Last, because their number grows: all else stays where a recorded step looks for it.
    for (const BatchSequence& s : batch_.sequences) {
      const int32_t number = batch_.tokens.sequence[s.first_token];
      const int32_t* pages = p.put(batch_.tokens.sequences[number].pages, pages_of(batch_, s));
      if (tables.host != nullptr) tables.host[number].pages = pages;
    }
  };
  Packer count(nullptr, nullptr);
  pack(count);
  if (act.pinned.bytes() < count.size()) {
    act.pinned = PinnedBuffer(*context_.device(), 2 * count.size());
  }
  std::byte* device = act.staged.get(count.size());
  Packer fill(act.pinned.data(), device);
  pack(fill);
  put(context_, device, act.pinned.data(), fill.size());
}

void StagedBatch::finish(Activations& act) {
  DeviceContext* device = context_.device();
  if (device == nullptr) return;
  const size_t values = static_cast<size_t>(logit_values_) * sizeof(float);
  const size_t marks = batch_.sequences.size() * sizeof(int32_t);
  const auto bytes = static_cast<int64_t>(values + marks);
  if (act.pinned_results.bytes() < bytes) act.pinned_results = PinnedBuffer(*device, 2 * bytes);
  std::byte* host = act.pinned_results.data();
  device->download(host, logits, bytes);
  if (values > 0) std::memcpy(batch_.logits, host, values);
  std::memcpy(batch_.failed_layer, host + values, marks);
}

}  // namespace tamis
