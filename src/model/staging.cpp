#include "model/staging.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "kernels/elementwise/elementwise.h"

namespace tamis {
namespace {

constexpr int64_t kAlignment = 16;
static_assert(sizeof(SampleEdit) == kAlignment, "places of edits are counted in them");

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
      vocab_(vocab) {
  tokens.max_context = longest(batch.tokens);
  std::fill_n(batch.failed_layer, batch.sequences.size(), -1);
  if (context.device() == nullptr) {
    if (logits == nullptr) logits = act.results.get(rows() * vocab);
    return;
  }
  pack(act);
  const int64_t values = rows() * vocab;
  logits = act.results.get(values + sequences() + 2);
  failed = reinterpret_cast<int32_t*>(logits + values);
  const int64_t wanted = batch.logits == nullptr ? 0 : values;
  reserve(act, &act.pinned_results,
          (1 + rows() + sequences() + wanted) * static_cast<int64_t>(sizeof(int32_t)));
  done_ = reinterpret_cast<uint32_t*>(act.pinned_results.data());
  best_ = reinterpret_cast<int32_t*>(done_ + 1);
  *done_ = number_ - 1;  // the memory may be new, and hold anything
}

// Recorded steps know where pinned memory lies.
void StagedBatch::reserve(Activations& act, PinnedBuffer* buffer, int64_t bytes) {
  if (buffer->bytes() >= bytes) return;
  *buffer = PinnedBuffer(*context_.device(), 2 * bytes);
  ++act.place.moves;
}

void StagedBatch::pack(Activations& act) {
  const int64_t n = tokens.num_tokens;
  const auto pack_all = [&](Packer& p) {
    ids = p.put(batch_.ids, n);
    tokens.sequence = p.put(batch_.tokens.sequence, n);
    tokens.position = p.put(batch_.tokens.position, n);
    logit_rows = p.put(batch_.logit_rows.data(), rows());
    const Packer::Room<SampleRow> rows_drawn =
        p.room<SampleRow>(static_cast<int64_t>(batch_.draws.size()));
    draws = rows_drawn.device;
    const Packer::Room<KvSequence> tables = p.room<KvSequence>(numbers(batch_));
    tokens.sequences = tables.device;
    // Last, because their number grows: all else stays where a recorded step looks for it.
    for (const BatchSequence& s : batch_.sequences) {
      const int32_t number = batch_.tokens.sequence[s.first_token];
      const int32_t* pages = p.put(batch_.tokens.sequences[number].pages, pages_of(batch_, s));
      if (tables.host != nullptr) tables.host[number].pages = pages;
    }
    const int64_t first_edit = p.size() / static_cast<int64_t>(sizeof(SampleEdit));
    p.put(batch_.edits.data(), static_cast<int64_t>(batch_.edits.size()));
    for (size_t r = 0; rows_drawn.host != nullptr && r < batch_.draws.size(); ++r) {
      rows_drawn.host[r] = batch_.draws[r];
      rows_drawn.host[r].first_edit += first_edit;  // of what lies where in_.to says
    }
  };
  Packer count(nullptr, nullptr);
  pack_all(count);
  if (act.pinned.bytes() > 0) {  // still as the last step left it
    std::memcpy(&number_, act.pinned.data() + sizeof(int64_t), sizeof(number_));
  }
  reserve(act, &act.pinned, kAlignment + count.size());
  std::byte *host = act.pinned.data(), *device = act.staged.get(act.pinned.bytes());
  Packer fill(host + kAlignment, device);
  pack_all(fill);
  const int64_t bytes = fill.size();
  ++number_;
  std::memcpy(host, &bytes, sizeof(bytes));
  std::memcpy(host + sizeof(bytes), &number_, sizeof(number_));
  in_.host = host;
  in_.room = act.pinned.bytes() / kAlignment * kAlignment;
  in_.to = device;
}

void StagedBatch::start() const {
  if (context_.device() == nullptr) return;
  StepInArgs in = in_;
  in.marks = failed;
  in.sequences = sequences();
  step_in(context_, in);
}

void StagedBatch::check_logits(int32_t mark) const {
  if (context_.device() == nullptr) {
    check_finite(context_, {logits, rows(), vocab_, logit_rows, tokens.sequence, mark, failed});
    return;
  }
  StepOutArgs out;
  out.logits = logits;
  out.rows = rows();
  out.vocab = vocab_;
  out.token = logit_rows;
  out.sequence = tokens.sequence;
  out.mark = mark;
  out.failed = failed;
  out.sequences = sequences();
  out.arrivals = reinterpret_cast<uint32_t*>(failed + sequences());
  out.host_best = best_;
  out.host_failed = best_ + rows();
  out.host_done = done_;
  step_out(context_, out);
  if (batch_.draws.empty()) return;
  sample_tokens(context_, {logits, rows(), vocab_, draws,
                           reinterpret_cast<const SampleEdit*>(in_.to), best_});
}

// The step's last kernel gives its number when its results are in the host's memory, some
// microseconds before the driver would tell. After an error it never does: then step_idle() throws.
void StagedBatch::wait_for_step() const {
  constexpr int kLooks = 2000;  // between questions to the driver
  const std::atomic_ref<uint32_t> done(*done_);
  for (int i = 1; done.load(std::memory_order_acquire) != number_; ++i) {
    if (i % kLooks == 0 && step_idle(context_)) break;
  }
}

void StagedBatch::finish() const {
  DeviceContext* device = context_.device();
  if (device == nullptr) {
    for (int64_t r = 0; batch_.best != nullptr && r < rows(); ++r) {
      const float* row = logits + r * vocab_;
      batch_.best[r] = static_cast<int32_t>(std::max_element(row, row + vocab_) - row);
    }
    return;
  }
  if (batch_.logits != nullptr && rows() > 0) {
    const auto bytes = rows() * vocab_ * static_cast<int64_t>(sizeof(float));
    int32_t* pinned = best_ + rows() + sequences();
    device->download(pinned, logits, bytes);
    std::memcpy(batch_.logits, pinned, static_cast<size_t>(bytes));
  } else if (batch_.draws.empty()) {
    wait_for_step();
  } else {
    device->synchronize();  // tokens are drawn behind the last look at the logits
  }
  if (batch_.best != nullptr) std::copy_n(best_, rows(), batch_.best);
  std::copy_n(best_ + rows(), sequences(), batch_.failed_layer);
}

}  // namespace tamis
