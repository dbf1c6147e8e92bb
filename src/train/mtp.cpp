// The module of multi-token prediction, forward and backward (src/model/transformer.cpp,
// forward_mtp).
#include "train/pass.h"

namespace tamis {
namespace {

// The tokens that have a next one, sequence by sequence.
template <typename T>
void make_batch(const MicroBatch& batch, MtpState<T>& mtp) {
  mtp.batch = {};
  mtp.row_of.clear();
  mtp.batch.begins.push_back(0);
  for (size_t s = 0; s + 1 < batch.begins.size(); ++s) {
    for (int64_t t = batch.begins[s]; t + 1 < batch.begins[s + 1]; ++t) {
      const auto next = static_cast<size_t>(t) + 1;
      mtp.row_of.push_back(static_cast<int32_t>(t));
      mtp.batch.ids.push_back(batch.ids[next]);
      mtp.batch.targets.push_back(batch.targets[next]);
    }
    if (mtp.batch.tokens() > mtp.batch.begins.back()) {
      mtp.batch.begins.push_back(mtp.batch.tokens());
    }
  }
}

// x of the module's layer: W_eh [enorm(E[next]) ; hnorm(h)].
template <typename T>
void join(Pass<T>& q, const T* normed, MtpState<T>& mtp, int64_t l) {
  using F = ForwardOps<T>;
  const int64_t n = q.tokens(), d = q.config.hidden_size;
  const MtpSlots& s = q.table.mtp();
  const auto eps = static_cast<T>(q.config.norm_eps);
  F::embedding(q.kernels, q.w + q.table.embed(), q.config, q.state.ids.data(), n,
               sized(q, mtp.e, n * d));
  T* h = sized(q, mtp.h, n * d);
  pick_rows<T>(q.kernels, {normed, placed(q, mtp.rows, mtp.row_of), n, d, h});
  T *half = sized(q, q.state.work.normed, n * d), *z = sized(q, mtp.joined, 2 * n * d);
  F::rms_norm(q.kernels, mtp.e.data(), d, q.w + s.enorm, n, d, eps, half);
  copy_columns<T>(q.kernels, {half, d, n, d, z, 2 * d});
  F::rms_norm(q.kernels, h, d, q.w + s.hnorm, n, d, eps, half);
  copy_columns<T>(q.kernels, {half, d, n, d, z + d, 2 * d});
  const Product<T> product{z, 2 * d, n, q.w + s.eh_proj, d, 2 * d, sized(q, q.layer(l).x, n * d)};
  F::products(q.kernels, {&product, 1});
}

// From dx of the layer's input.
template <typename T>
void join_backward(Pass<T>& q, const T* dx, MtpState<T>& mtp, T* d_normed) {
  const int64_t n = q.tokens(), d = q.config.hidden_size;
  const MtpSlots& s = q.table.mtp();
  const auto eps = static_cast<T>(q.config.norm_eps);
  T *dz = sized(q, mtp.djoined, 2 * n * d), *half = sized(q, mtp.half, n * d);
  products_backward<T>(q.kernels, {dx, d, mtp.joined.data(), 2 * d, n, q.w + s.eh_proj, d, 2 * d,
                                   dz, false, q.grad + s.eh_proj});
  T* back = zeroed(q, mtp.back, n * d);
  copy_columns<T>(q.kernels, {dz, 2 * d, n, d, half, d});
  rms_norm_backward<T>(
      q.kernels, {mtp.e.data(), d, q.w + s.enorm, half, n, d, eps, back, d, q.grad + s.enorm});
  embedding_backward<T>(
      q.kernels, {q.state.ids.data(), back, n, d, q.grad + q.table.embed(), q.config.vocab_size});
  copy_columns<T>(q.kernels, {dz + d, 2 * d, n, d, half, d});
  zeroed(q, mtp.back, n * d);
  rms_norm_backward<T>(
      q.kernels, {mtp.h.data(), d, q.w + s.hnorm, half, n, d, eps, back, d, q.grad + s.hnorm});
  return_rows<T>(q.kernels, {back, mtp.rows.data(), n, d, d_normed});
}

}  // namespace

int64_t mtp_targets(const MicroBatch& batch) {
  int64_t count = 0;
  for (size_t s = 0; s + 1 < batch.begins.size(); ++s) {
    for (int64_t t = batch.begins[s] + 1; t < batch.begins[s + 1]; ++t) {
      count += batch.targets[static_cast<size_t>(t)] >= 0 ? 1 : 0;
    }
  }
  return count;
}

template <typename T>
void mtp_forward_backward(Pass<T>& p, MtpState<T>& mtp, T* d_normed) {
  make_batch(p.batch, mtp);
  const int64_t n = mtp.batch.tokens(), d = p.config.hidden_size, l = p.config.num_layers();
  if (n == 0) return;
  Pass<T> q = mtp_pass(p, mtp);
  for (LayerState<T>& layer : mtp.state.layers) layer.indices.clear();
  place_batch(q);
  join(q, p.state.work.normed.data(), mtp, l);
  attention_forward(q, l);
  ffn_forward(q, l, sized(q, q.state.work.final_x, n * d));
  if (d_normed == nullptr) return;
  Workspace<T>& work = q.state.work;
  T* dy = sized(q, work.dnormed, n * d);
  const int64_t norm = p.table.mtp().norm;
  head_forward_backward(q, norm, p.objective.mtp_scale, dy);
  p.result.mtp_targets += mtp_targets(p.batch);
  T* dx = zeroed(q, work.dx, n * d);
  rms_norm_backward<T>(
      q.kernels, {work.final_x.data(), d, p.w + norm, dy, n, d, static_cast<T>(p.config.norm_eps),
                  dx, d, p.grad + norm, false, sized_dx_bf16(q)});
  ffn_backward(q, l, dx);
  attention_backward(q, l, dx);
  join_backward(q, dx, mtp, d_normed);
}

template void mtp_forward_backward(Pass<float>&, MtpState<float>&, float*);
template void mtp_forward_backward(Pass<double>&, MtpState<double>&, double*);

}  // namespace tamis
