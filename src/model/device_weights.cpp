#include "model/device_weights.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "kernels/memory.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kStaging = int64_t{64} << 20;
constexpr int64_t kPiece = int64_t{1} << 20;

int64_t aligned(int64_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

int64_t matrix_bytes(const Weight& w) { return w.rows * w.row_bytes; }

// Scales of every row from the first of the whole matrix to the last of this slice.
int64_t scale_bytes(const Weight& w) {
  if (w.scales == nullptr) return 0;
  const int64_t last = w.row_offset + w.rows;
  const int64_t rows = w.dtype == DType::kF8E4M3 ? (last + kFp8Block - 1) / kFp8Block : last;
  return dtype_bytes(w.scale_dtype, rows * w.scale_stride);
}

// Calls visit(Weight&), visit(Parameters&) or visit(ExpertTable&) for everything, the tables after
// the experts that they repeat.
template <typename Visit>
void visit_mlp(MlpWeights& w, const Visit& visit) {
  for (Weight* m : {&w.gate, &w.up, &w.down}) visit(*m);
}

template <typename Visit>
void visit_layer(LayerWeights& l, const Visit& visit) {
  visit(l.input_norm);
  visit(l.post_attention_norm);
  AttentionWeights& a = l.attention;
  for (Weight* w : {&a.q_a, &a.q_b, &a.kv_a, &a.kv_b, &a.o}) visit(*w);
  visit(a.q_a_norm);
  visit(a.kv_a_norm);
  if (a.indexer) {
    for (Weight* w : {&a.indexer->wq_b, &a.indexer->wk, &a.indexer->weights_proj}) visit(*w);
    visit(a.indexer->k_norm_w);
    visit(a.indexer->k_norm_b);
  }
  visit_mlp(l.mlp, visit);
  visit(l.moe.router);
  visit(l.moe.bias);
  for (ExpertTable* t : {&l.moe.gates, &l.moe.ups, &l.moe.downs}) {
    for (Weight& w : t->weights) visit(w);
    visit(*t);
  }
  for (size_t e = 0; e < l.moe.experts.size(); ++e) {
    l.moe.experts[e] = {l.moe.gates.weights[e], l.moe.ups.weights[e], l.moe.downs.weights[e]};
  }
  if (l.moe.shared) visit_mlp(*l.moe.shared, visit);
}

template <typename Visit>
void visit_all(ModelWeights& w, const Visit& visit) {
  visit(w.embed);
  visit(w.head);
  visit(w.norm);
  for (LayerWeights& l : w.layers) visit_layer(l, visit);
  for (MtpWeights& m : w.mtp) {
    for (Parameters* p : {&m.enorm, &m.hnorm, &m.norm}) visit(*p);
    visit(m.eh_proj);
    visit_layer(m.layer, visit);
  }
}

// Gives every piece its place in the arena, one after the other; what is used twice (tied
// embeddings) once. `copy(from, bytes)` is called in the order of the places.
template <typename Copy>
class Placer {
 public:
  Placer(std::byte* arena, const Copy& copy) : arena_(arena), copy_(copy) {}

  void operator()(Weight& w) const {
    if (w.data == nullptr) return;
    w.data = place(w.data, matrix_bytes(w));
    if (w.scales != nullptr) w.scales = place(w.scales, scale_bytes(w));
  }
  void operator()(Parameters& p) const {
    if (p.values.empty()) return;
    const auto bytes = static_cast<int64_t>(p.values.size() * sizeof(float));
    p.on_device = reinterpret_cast<const float*>(
        place(reinterpret_cast<const std::byte*>(p.values.data()), bytes));
  }
  void operator()(ExpertTable& t) const {
    if (t.weights.empty()) return;
    const auto bytes = static_cast<int64_t>(t.weights.size() * sizeof(Weight));
    t.on_device = reinterpret_cast<const Weight*>(
        place(reinterpret_cast<const std::byte*>(t.weights.data()), bytes));
  }
  int64_t bytes() const { return bytes_; }

 private:
  const std::byte* place(const std::byte* from, int64_t bytes) const {
    const auto [it, added] = placed_.try_emplace(from, arena_ + bytes_);
    if (added) {
      copy_(from, bytes);
      bytes_ += aligned(bytes);
    }
    return it->second;
  }

  std::byte* arena_;
  const Copy& copy_;
  mutable int64_t bytes_ = 0;
  mutable std::map<const std::byte*, const std::byte*> placed_;
};

// Sends a sequence of pieces to consecutive places, through two halves of pinned memory: one is
// filled while the other is on its way.
class Sender {
 public:
  Sender(KernelContext& context, const DeviceBuffer& arena,
         FunctionRef<void(int64_t, int64_t)> progress)
      : context_(context),
        arena_(arena),
        pinned_(*context.device(), kStaging),
        progress_(progress) {}

  void send(const std::byte* from, int64_t bytes) {
    for (int64_t done = 0; done < bytes;) {
      const int64_t n = std::min(bytes - done, half() - filled_);
      fill(from + done, n);
      done += n;
      if (filled_ == half()) flush();
    }
    const int64_t gap = std::min(aligned(bytes) - bytes, half() - filled_);
    filled_ += gap;
    if (filled_ == half()) flush();
  }

  void finish() {
    flush();
    context_.device()->synchronize();
  }

 private:
  int64_t half() const { return pinned_.bytes() / 2 / kAlignment * kAlignment; }

  void fill(const std::byte* from, int64_t bytes) {
    std::byte* to = pinned_.data() + side_ * half() + filled_;
    context_.pool().run((bytes + kPiece - 1) / kPiece, [&](int64_t i, int) {
      const int64_t begin = i * kPiece, count = std::min(kPiece, bytes - begin);
      std::memcpy(to + begin, from + begin, static_cast<size_t>(count));
    });
    filled_ += bytes;
  }

  void flush() {
    if (sent_ > 0) context_.device()->synchronize();  // the other half is free again
    put(context_, arena_.data() + sent_, pinned_.data() + side_ * half(), filled_);
    sent_ += filled_;
    filled_ = 0;
    side_ = 1 - side_;
    progress_(sent_, arena_.bytes());
  }

  KernelContext& context_;
  const DeviceBuffer& arena_;
  PinnedBuffer pinned_;
  FunctionRef<void(int64_t, int64_t)> progress_;
  int64_t side_ = 0, filled_ = 0, sent_ = 0;
};

}  // namespace

int64_t device_weight_bytes(const ModelWeights& weights) {
  ModelWeights copy = weights;
  const auto nothing = [](const std::byte*, int64_t) {};
  const Placer count(nullptr, nothing);
  visit_all(copy, count);
  return count.bytes();
}

DeviceWeights::DeviceWeights(KernelContext& context, const ModelWeights& host,
                             FunctionRef<void(int64_t, int64_t)> progress)
    : weights_(host), arena_(*context.device(), device_weight_bytes(host), "the weights") {
  Sender sender(context, arena_, progress);
  const auto copy = [&](const std::byte* from, int64_t bytes) { sender.send(from, bytes); };
  visit_all(weights_, Placer(arena_.data(), copy));
  sender.finish();
}

}  // namespace tamis
