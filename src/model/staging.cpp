#include "model/staging.h"

#include <algorithm>
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

  // Where `count` values will lie on the device.
  template <typename T>
  const T* put(const T* values, int64_t count) {
    const auto* place = reinterpret_cast<const T*>(device_ + size_);
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    if (host_ != nullptr && bytes > 0) {
      std::memcpy(host_ + size_, values, static_cast<size_t>(bytes));
    }
    size_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return place;
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

int64_t longest(const TokenMap& tokens) {
  if (tokens.num_tokens == 0) return 0;
  return *std::max_element(tokens.position, tokens.position + tokens.num_tokens) + int64_t{1};
}

}  // namespace

StagedBatch::StagedBatch(KernelContext& context, const Batch& batch, Activations& act)
    : tokens(batch.tokens),
      ids(batch.ids),
      logit_rows(batch.logit_rows.data()),
      logits(batch.logits),
      failed(batch.failed_layer),
      context_(context),
      batch_(batch) {
  tokens.max_context = longest(batch.tokens);
  std::fill_n(batch.failed_layer, batch.sequences.size(), -1);
  if (context.device() != nullptr) upload(act);
}

void StagedBatch::upload(Activations& act) {
  const int64_t n = tokens.num_tokens;
  const auto sequences = static_cast<int64_t>(batch_.sequences.size());
  const auto pack = [&](Packer& p) {
    ids = p.put(batch_.ids, n);
    tokens.sequence = p.put(batch_.tokens.sequence, n);
    tokens.position = p.put(batch_.tokens.position, n);
    logit_rows = p.put(batch_.logit_rows.data(), static_cast<int64_t>(batch_.logit_rows.size()));
    failed = const_cast<int32_t*>(p.put(batch_.failed_layer, sequences));
    std::vector<KvSequence> tables;
    for (const BatchSequence& s : batch_.sequences) {
      const int32_t number = batch_.tokens.sequence[s.first_token];
      tables.resize(std::max(tables.size(), static_cast<size_t>(number) + 1));
      tables[static_cast<size_t>(number)].pages =
          p.put(batch_.tokens.sequences[number].pages, pages_of(batch_, s));
    }
    tokens.sequences = p.put(tables.data(), static_cast<int64_t>(tables.size()));
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

void StagedBatch::finish(int64_t vocab) {
  if (context_.device() == nullptr) return;
  const auto rows = static_cast<int64_t>(batch_.logit_rows.size());
  get(context_, batch_.logits, logits, rows * vocab * static_cast<int64_t>(sizeof(float)));
  get(context_, batch_.failed_layer, failed,
      static_cast<int64_t>(batch_.sequences.size() * sizeof(int32_t)));
}

}  // namespace tamis
