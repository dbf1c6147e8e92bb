// Attention and the indexer in training on CUDA: every operation against the reference in double,
// the same bits in every run, and blocks that do not divide the sequence.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>

#include "kernels/indexer_kl/indexer_kl_impl.h"
#include "kernels/indexer_select/indexer_select_impl.h"
#include "kernels/indexer_select/train_problem.h"
#include "kernels/mla_dense/mla_dense_backward_impl.h"
#include "kernels/mla_sparse/mla_sparse_backward_impl.h"
#include "kernels/test_weight.h"
#include "kernels/tolerance.h"
#include "support/cuda_device.h"

namespace tamis {
namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

// The error of a product of two factors that were taken apart (train_products.h) and of float32
// sums of them, relative to the sum of |a b|; n terms.
constexpr double kTwoParts = 3.01 * 0x1p-18, kBf16 = 2.01 * 0x1p-9;
double product_error = kTwoParts;
double product_unit(int64_t n) { return product_error + static_cast<double>(n + 2) * kUnitF32; }

double largest_norm(const Floats& x, int64_t width, int64_t begin, int64_t end) {
  double norm = 0;
  for (size_t r = 0; r + static_cast<size_t>(width) <= x.size(); r += static_cast<size_t>(width)) {
    norm = std::max(norm, norm2(x.data() + r + begin, end - begin));
  }
  return norm;
}

double largest(const Floats& x) {
  double top = 0;
  for (const float v : x) top = std::max<double>(top, std::fabs(v));
  return top;
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}

template <typename Bound>
void expect_within(const Floats& got, const Doubles& want, const char* what, const Bound& bound) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(got[i], want[i], bound(static_cast<int64_t>(i))) << what << " " << i;
  }
}

// How far P of a softmax over n scores, and the gradients of scores, lie from the exact ones.
struct Errors {
  // Factors of a score at most `q` and `k` long, of dP `o` and `v`; sums of `dim` and `v_dim`.
  Errors(double scale, double q, double k, int64_t dim, double o, double v, int64_t v_dim,
         int64_t n) {
    const double score = scale * q * k;
    const double exponent = score * product_unit(dim) + (4 + 2 * score) * kUnitF32;
    probability = 2 * exponent + static_cast<double>(n + 8) * kUnitF32;
    const double dp = o * v * product_unit(v_dim);
    const double sum = o * v * static_cast<double>(n + 8) * kUnitF32;
    // dS = scale P (dP - sum P dP), |dP - ...| <= 2 o v
    gradient = scale * (2 * dp + sum + 2 * probability * o * v + probability * 2 * o * v);
    largest_gradient = scale * 2 * o * v;
  }
  double probability;       // relative
  double gradient;          // of dS / P
  double largest_gradient;  // |dS| / P at most
};

// ---- dense

struct DenseShape {
  int64_t heads, nope, rope, v_dim;
};

class DenseProblem {
 public:
  DenseProblem(const DenseShape& s, int64_t tokens)
      : shape(s),
        n(tokens),
        q(random_floats(n * s.heads * (s.nope + s.rope), 1)),
        kv(random_floats(n * s.heads * (s.nope + s.v_dim), 2)),
        k_pe(random_floats(n * s.rope, 3)),
        d_out(random_floats(n * s.heads * s.v_dim, 4)) {}

  template <typename T>
  MlaSequence<T> sequence(const T* q_, const T* kv_, const T* k_pe_) const {
    return {q_, kv_, k_pe_, n, shape.heads, shape.nope, shape.rope, shape.v_dim, T(scale())};
  }
  float scale() const { return 1 / std::sqrt(static_cast<float>(shape.nope + shape.rope)); }
  Errors errors() const {
    const int64_t qk = shape.nope + shape.rope, kv_width = shape.nope + shape.v_dim;
    return {scale(),
            largest_norm(q, qk, 0, qk),
            std::hypot(largest_norm(kv, kv_width, 0, shape.nope),
                       largest_norm(k_pe, shape.rope, 0, shape.rope)),
            qk,
            largest_norm(d_out, shape.v_dim, 0, shape.v_dim),
            largest_norm(kv, kv_width, shape.nope, kv_width),
            shape.v_dim,
            n};
  }

  DenseShape shape;
  int64_t n;
  Floats q, kv, k_pe, d_out;
};

struct DenseGradients {
  Floats dq, dkv, dk_pe;
};

class TrainAttentionCuda : public CudaTest {
 protected:
  void SetUp() override { product_error = kTwoParts; }
  // Through scores in memory and train_products, not through mla_flash.
  void dense_by_products() {
    context().force("mla_dense_train", "cuda");
    context().force("mla_dense_backward", "cuda");
  }
  void round_to_bf16() {
    product_error = kBf16;
    context().force("train_products", "cuda_bf16");
  }
  Floats forward(const DenseProblem& p) {
    const Device<float> q(context(), p.q), kv(context(), p.kv), k_pe(context(), p.k_pe);
    const Device<float> out(context(), static_cast<int64_t>(p.d_out.size()));
    mla_dense_train(context(), {p.sequence(q.data(), kv.data(), k_pe.data()), out.data()});
    return out.read();
  }
  DenseGradients backward(const DenseProblem& p, int64_t size) {
    const Device<float> q(context(), p.q), kv(context(), p.kv), k_pe(context(), p.k_pe);
    const Device<float> d_out(context(), p.d_out), dq(context(), q.size());
    const Device<float> dkv(context(), kv.size()), dk_pe(context(), k_pe.size());
    const MlaDenseBackwardArgs<float> a{p.sequence(q.data(), kv.data(), k_pe.data()), d_out.data(),
                                        dq.data(), dkv.data(), dk_pe.data()};
    if (size == 0) {
      mla_dense_backward<float>(context(), a);
    } else {
      mla_dense_backward_cuda_by(context(), a, size);
    }
    return {dq.read(), dkv.read(), dk_pe.read()};
  }
};

// sum over queries of P at each (key, head).
Doubles column_mass(const DenseProblem& p, const MlaSequence<double>& in) {
  Doubles mass(static_cast<size_t>(p.n * p.shape.heads));
  for (int64_t t = 0; t < p.n; ++t) {
    for (int64_t h = 0; h < p.shape.heads; ++h) {
      const Doubles row = mla_probabilities(in, t, h);
      for (size_t s = 0; s < row.size(); ++s) {
        mass[s * static_cast<size_t>(p.shape.heads) + static_cast<size_t>(h)] += row[s];
      }
    }
  }
  return mass;
}

void expect_dense(const DenseProblem& p, const Floats& out, const DenseGradients& got) {
  const auto& [heads, nope, rope, v_dim] = p.shape;
  const Doubles q(p.q.begin(), p.q.end()), kv(p.kv.begin(), p.kv.end());
  const Doubles k_pe(p.k_pe.begin(), p.k_pe.end()), d_out(p.d_out.begin(), p.d_out.end());
  const MlaSequence<double> in = p.sequence(q.data(), kv.data(), k_pe.data());
  Doubles dq(q.size()), dkv(kv.size()), dk_pe(k_pe.size()), want(d_out.size());
  KernelContext host(1);
  mla_dense_backward_reference<double>(host,
                                       {in, d_out.data(), dq.data(), dkv.data(), dk_pe.data()});
  for (int64_t t = 0; t < p.n; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const Doubles row = mla_probabilities(in, t, h);
      for (size_t s = 0; s < row.size(); ++s) {
        for (int64_t d = 0; d < v_dim; ++d) {
          want[static_cast<size_t>((t * heads + h) * v_dim + d)] +=
              row[s] * kv[static_cast<size_t>(
                           (static_cast<int64_t>(s) * heads + h) * (nope + v_dim) + nope + d)];
        }
      }
    }
  }
  const Errors e = p.errors();
  const double key = std::max(largest(p.kv), largest(p.k_pe)), query = largest(p.q);
  const double value = largest(p.kv), gradient = largest(p.d_out), unit = product_unit(p.n * heads);
  expect_within(out, want, "out", [&](int64_t) { return value * (e.probability + unit); });
  const double per_mass = e.gradient + unit * e.largest_gradient;
  expect_within(got.dq, dq, "dq", [&](int64_t) { return key * per_mass; });
  const Doubles mass = column_mass(p, in);
  expect_within(got.dkv, dkv, "dkv", [&](int64_t i) {
    const double m = mass[static_cast<size_t>(i / (nope + v_dim))];
    return i % (nope + v_dim) < nope ? m * query * per_mass : m * gradient * (e.probability + unit);
  });
  expect_within(got.dk_pe, dk_pe, "dk_pe", [&](int64_t i) {
    double m = 0;
    for (int64_t h = 0; h < heads; ++h) m += mass[static_cast<size_t>(i / rope * heads + h)];
    return m * query * per_mass;
  });
}

constexpr DenseShape kDenseShapes[] = {
    {1, 128, 64, 128}, {3, 16, 8, 16}, {2, 20, 6, 21}, {2, 5, 1, 1}, {5, 33, 16, 31}};

TEST_F(TrainAttentionCuda, DenseIsTheReference) {
  for (const bool products : {false, true}) {
    if (products) dense_by_products();
    for (const DenseShape& shape : kDenseShapes) {
      for (const int64_t tokens : {1, 2, 63, 64, 65, 140}) {
        if (skip_case()) continue;
        SCOPED_TRACE("nope " + std::to_string(shape.nope) + " tokens " + std::to_string(tokens));
        const DenseProblem p(shape, tokens);
        for (const int64_t size : {0, 48}) expect_dense(p, forward(p), backward(p, size));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(TrainAttentionCuda, DenseHasTheSameBitsInEveryRun) {
  const DenseProblem p({4, 128, 64, 128}, thinned() ? 100 : 700);
  const Floats out = forward(p);
  const DenseGradients want = backward(p, 300);
  for (int i = 0; i < 3; ++i) {
    const DenseGradients got = backward(p, 300);
    EXPECT_TRUE(same_bits(got.dq, want.dq) && same_bits(got.dkv, want.dkv) &&
                same_bits(got.dk_pe, want.dk_pe) && same_bits(forward(p), out));
  }
}

// Small factors, so that what rounding does to a weight stays small against it.
TEST_F(TrainAttentionCuda, DenseInBf16IsTheReference) {
  dense_by_products();
  round_to_bf16();
  for (const int64_t tokens : {65, 140}) {
    DenseProblem p({2, 64, 32, 48}, tokens);
    for (float& v : p.q) v /= 16;
    const Floats out = forward(p);
    const DenseGradients got = backward(p, 0);
    expect_dense(p, out, got);
    context().force("train_products", "cuda");
    EXPECT_FALSE(same_bits(forward(p), out));
    context().force("train_products", "cuda_bf16");
  }
}

// ---- sparse

struct SparseShape {
  int64_t heads, kv_lora, rope, k;
};

std::vector<int32_t> selection(int64_t tokens, int64_t k) {
  std::mt19937 random(5);
  std::vector<int32_t> indices(static_cast<size_t>(tokens * k), -1), seen;
  for (int32_t t = 0; t < tokens; ++t) {
    seen.push_back(t);
    std::sample(seen.begin(), seen.end(), indices.begin() + t * k, k, random);
  }
  return indices;
}

struct SparseResult {
  Floats out, target, dq_latent, dq_pe, dc_kv, dk_pe;
};

class SparseProblem {
 public:
  SparseProblem(const SparseShape& s, int64_t tokens, bool several = false)
      : shape(s),
        n(tokens),
        stride(s.rope + 3),
        q_latent(random_floats(n * s.heads * s.kv_lora, 1)),
        q_pe(random_floats(n * s.heads * stride, 2)),
        c_kv(random_floats(n * s.kv_lora, 3)),
        k_pe(random_floats(n * s.rope, 4)),
        d_out(random_floats(n * s.heads * s.kv_lora, 5)),
        indices(selection(n, s.k)),
        ragged(several ? n : 0) {
    if (several) {
      indices = ragged.rows([&](int64_t, int64_t count) { return selection(count, s.k); });
    }
  }

  float scale() const { return 1 / std::sqrt(static_cast<float>(shape.kv_lora + shape.rope)); }

  template <typename T>
  MlaSparseBackwardArgs<T> args(const T* ql, const T* qp, const T* c, const T* k,
                                const int32_t* set) const {
    MlaSparseBackwardArgs<T> a;
    a.q_latent = ql;
    a.q_pe = qp;
    a.q_pe_stride = stride;
    a.c_kv = c;
    a.k_pe = k;
    a.tokens = n;
    a.heads = shape.heads;
    a.kv_lora = shape.kv_lora;
    a.rope = shape.rope;
    a.indices = set;
    a.k = shape.k;
    a.softmax_scale = T(scale());
    return a;
  }

  // `size`: tokens of a block; 0: with what the forward pass kept; -1: without. `call`: tokens of a
  // call, 0: all.
  SparseResult run(KernelContext& context, int64_t size, int64_t call = 0) const {
    const Device<float> ql(context, q_latent), qp(context, q_pe), c(context, c_kv);
    const Device<float> k(context, k_pe), o(context, d_out), out(context, o.size());
    const Device<float> target(context, n * shape.k), dql(context, ql.size());
    const Device<float> dqp(context, Floats(q_pe.size())), dc(context, c.size());
    const Device<float> dk(context, k.size());
    const Device<int32_t> set(context, indices), position(context, ragged.position);
    const Device<float> log_sum(context, n * shape.heads), again(context, target.size());
    MlaSparseBackwardArgs<float> a =
        args<float>(ql.data(), qp.data(), c.data(), k.data(), set.data());
    if (position.size() > 0) a.sequences = {position.data(), ragged.longest};
    a.d_out = o.data();
    a.dq_latent = dql.data();
    a.dq_pe = dqp.data();
    a.dc_kv = dc.data();
    a.dk_pe = dk.data();
    const MlaSparseBackwardArgs<float> all = a;
    for (a.first = 0; a.first < n; a.first += a.tokens) {
      const int64_t head = a.first * shape.heads, latent = head * shape.kv_lora;
      a.tokens = call > 0 ? std::min(call, n - a.first) : n;
      a.q_latent = all.q_latent + latent;
      a.d_out = all.d_out + latent;
      a.dq_latent = all.dq_latent + latent;
      a.q_pe = all.q_pe + head * stride;
      a.dq_pe = all.dq_pe + head * stride;
      a.indices = all.indices + a.first * shape.k;
      a.out = a.log_sum = nullptr;
      const int64_t at = a.first * shape.k;
      mla_sparse_train(context, {a, out.data() + latent, log_sum.data() + head, again.data() + at});
      mla_sparse_target<float>(context, {a, target.data() + at});
      if (size <= 0) {
        if (size == 0) a.out = out.data() + latent, a.log_sum = log_sum.data() + head;
        mla_sparse_backward<float>(context, a);
      } else {
        mla_sparse_backward_cuda_by(context, a, size);
      }
    }
    EXPECT_TRUE(same_bits(again.read(), target.read()));
    return {out.read(), target.read(), dql.read(), dqp.read(), dc.read(), dk.read()};
  }

  SparseShape shape;
  int64_t n, stride;
  Floats q_latent, q_pe, c_kv, k_pe, d_out;
  std::vector<int32_t> indices;
  Ragged ragged;
};

// The reference in double.
struct SparseWant {
  explicit SparseWant(const SparseProblem& p);
  Doubles out, target, dq_latent, dq_pe, dc_kv, dk_pe;
  Doubles mass;  // sum over queries and heads of P at each position
};

SparseWant::SparseWant(const SparseProblem& p)
    : out(p.d_out.size()),
      target(static_cast<size_t>(p.n * p.shape.k)),
      dq_latent(p.q_latent.size()),
      dq_pe(p.q_pe.size()),
      dc_kv(p.c_kv.size()),
      dk_pe(p.k_pe.size()),
      mass(static_cast<size_t>(p.n)) {
  const auto& [heads, kv_lora, rope, k] = p.shape;
  const auto twice = [](const Floats& x) { return Doubles(x.begin(), x.end()); };
  const Doubles ql = twice(p.q_latent), qp = twice(p.q_pe), c = twice(p.c_kv), pe = twice(p.k_pe);
  const Doubles o = twice(p.d_out);
  MlaSparseBackwardArgs<double> a =
      p.args<double>(ql.data(), qp.data(), c.data(), pe.data(), p.indices.data());
  KernelContext host(1);
  mla_sparse_target_reference<double>(host, {a, target.data()});
  a.d_out = o.data();
  a.dq_latent = dq_latent.data();
  a.dq_pe = dq_pe.data();
  a.dc_kv = dc_kv.data();
  a.dk_pe = dk_pe.data();
  mla_sparse_backward_reference<double>(host, a);
  for (int64_t t = 0; t < p.n; ++t) {
    const int32_t* set = p.indices.data() + t * k;
    const int64_t count = selected_count(set, k);
    for (int64_t i = 0; i < count; ++i) {
      mass[static_cast<size_t>(set[i])] +=
          target[static_cast<size_t>(t * k + i)] * static_cast<double>(heads);
    }
    for (int64_t h = 0; h < heads; ++h) {
      Doubles row;
      double sum = 0;
      for (int64_t i = 0; i < count; ++i) {
        double score = 0;
        for (int64_t d = 0; d < kv_lora; ++d) {
          score += ql[static_cast<size_t>((t * heads + h) * kv_lora + d)] *
                   c[static_cast<size_t>(set[i] * kv_lora + d)];
        }
        for (int64_t d = 0; d < rope; ++d) {
          score += qp[static_cast<size_t>((t * heads + h) * p.stride + d)] *
                   pe[static_cast<size_t>(set[i] * rope + d)];
        }
        row.push_back(std::exp(a.softmax_scale * score));
        sum += row.back();
      }
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t d = 0; d < kv_lora; ++d) {
          out[static_cast<size_t>((t * heads + h) * kv_lora + d)] +=
              row[static_cast<size_t>(i)] / sum * c[static_cast<size_t>(set[i] * kv_lora + d)];
        }
      }
    }
  }
}

void expect_sparse(const SparseProblem& p, const SparseResult& got, const SparseWant& want) {
  const auto& [heads, kv_lora, rope, k] = p.shape;
  const double latent = largest_norm(p.c_kv, kv_lora, 0, kv_lora);
  const Errors e(p.scale(),
                 std::hypot(largest_norm(p.q_latent, kv_lora, 0, kv_lora),
                            largest_norm(p.q_pe, p.stride, 0, rope)),
                 std::hypot(latent, largest_norm(p.k_pe, rope, 0, rope)), kv_lora + rope,
                 largest_norm(p.d_out, kv_lora, 0, kv_lora), latent, kv_lora, k);
  const double key = std::max(largest(p.c_kv), largest(p.k_pe));
  const double query = std::max(largest(p.q_latent), largest(p.q_pe));
  const double gradient = largest(p.d_out);
  const double unit = product_unit(p.n * heads + k),
               per_mass = e.gradient + unit * e.largest_gradient;
  expect_within(got.target, want.target, "target", [&](int64_t i) {
    return want.target[static_cast<size_t>(i)] *
           (e.probability + static_cast<double>(heads + 2) * kUnitF32);
  });
  expect_within(got.out, want.out, "out", [&](int64_t) { return key * (e.probability + unit); });
  expect_within(got.dq_latent, want.dq_latent, "dq_latent",
                [&](int64_t) { return key * per_mass; });
  expect_within(got.dq_pe, want.dq_pe, "dq_pe", [&](int64_t) { return key * per_mass; });
  expect_within(got.dc_kv, want.dc_kv, "dc_kv", [&](int64_t i) {
    return want.mass[static_cast<size_t>(i / kv_lora)] *
           (query * per_mass + gradient * (e.probability + unit));
  });
  expect_within(got.dk_pe, want.dk_pe, "dk_pe", [&](int64_t i) {
    return want.mass[static_cast<size_t>(i / rope)] * query * per_mass;
  });
}

constexpr SparseShape kSparseShapes[] = {{4, 512, 64, 64}, {16, 128, 16, 70}, {3, 20, 6, 1},
                                         {17, 36, 7, 100}, {70, 24, 4, 33},   {130, 8, 4, 2}};

bool same_bits(const SparseResult& a, const SparseResult& b) {
  return same_bits(a.out, b.out) && same_bits(a.target, b.target) &&
         same_bits(a.dq_latent, b.dq_latent) && same_bits(a.dq_pe, b.dq_pe) &&
         same_bits(a.dc_kv, b.dc_kv) && same_bits(a.dk_pe, b.dk_pe);
}

class TrainSparseCuda : public TrainAttentionCuda {
 protected:
  void sparse_by(const char* name) {
    for (const char* op : {"mla_sparse_train", "mla_sparse_target", "mla_sparse_backward"}) {
      context().force(op, name);
    }
  }
  // `check(problem, reference)` over every shape.
  template <typename Check>
  void for_shapes(const Check& check) {
    for (const SparseShape& shape : kSparseShapes) {
      for (const int64_t tokens : {1, 64, 65, 110}) {
        for (const bool several : {false, true}) {
          if (skip_case()) continue;
          SCOPED_TRACE("latent " + std::to_string(shape.kv_lora) + " tokens " +
                       std::to_string(tokens) + (several ? " in several" : ""));
          const SparseProblem p(shape, tokens, several);
          check(p, SparseWant(p));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
  // Runs that cut the work otherwise have the bits of `got`. A run is slow under a sanitizer, where
  // one is enough.
  void expect_bits(const SparseProblem& p, std::initializer_list<int64_t> sizes,
                   const SparseResult& got) {
    for (const int64_t size : sizes) {
      EXPECT_TRUE(same_bits(p.run(context(), size), got)) << size;
      if (thinned()) break;
    }
  }
};

TEST_F(TrainSparseCuda, IsTheReference) {
  for_shapes([&](const SparseProblem& p, const SparseWant& want) {
    sparse_by("cuda");
    const SparseResult got = p.run(context(), 0);
    expect_sparse(p, got, want);
    expect_sparse(p, p.run(context(), 37), want);
    expect_sparse(p, p.run(context(), 0, 29), want);
    expect_bits(p, {200, 0}, got);
    if (p.shape.heads > 16) return;
    sparse_by("cuda_few");
    const SparseResult few = p.run(context(), 0);
    expect_sparse(p, few, want);
    expect_bits(p, {-1, 0}, few);
    EXPECT_TRUE(same_bits(p.run(context(), 0, 29), few));
  });
}

// By products of many heads and selected rows at once: the gradient alone, and all of it.
TEST_F(TrainSparseCuda, InTilesIsTheReference) {
  for_shapes([&](const SparseProblem& p, const SparseWant& want) {
    sparse_by("cuda");
    context().force("mla_sparse_backward", "cuda_many");
    const SparseResult many = p.run(context(), 0);
    expect_sparse(p, many, want);
    expect_bits(p, {-1, 0}, many);
    context().force("scatter_slots", "cuda");
    EXPECT_TRUE(same_bits(p.run(context(), 0), many));
    context().force("scatter_slots", "cuda_listed");
    sparse_by("cuda_many");
    const SparseResult both = p.run(context(), 0);
    expect_sparse(p, both, want);
    expect_bits(p, {-1, 0}, both);
    EXPECT_TRUE(same_bits(p.run(context(), 0, 29), both));
    context().force("scatter_rows", "cuda_atomic");
    expect_sparse(p, p.run(context(), 0), want);
    expect_sparse(p, p.run(context(), 0, 29), want);
    context().force("scatter_rows", "cuda");
  });
}

// Several tiles of rows and of columns, and factors rounded to bf16 in steps of their own. Small
// queries, so that what rounding does to a weight stays small against it.
TEST_F(TrainAttentionCuda, SparseOfManyHeadsIsTheReference) {
  for (const SparseShape& shape : {SparseShape{20, 200, 24, 290}, SparseShape{130, 24, 8, 140}}) {
    for (const bool bf16 : {false, true}) {
      for (const bool several : {false, true}) {
        if (skip_case()) continue;
        SCOPED_TRACE(std::to_string(shape.heads) + (bf16 ? " in bf16" : "") +
                     (several ? " in several" : ""));
        SparseProblem p(shape, shape.k + 21, several);
        for (float& v : p.q_latent) v /= 16;
        for (float& v : p.q_pe) v /= 16;
        product_error = bf16 ? kBf16 : kTwoParts;
        context().force("train_products", bf16 ? "cuda_bf16" : "cuda");
        for (const char* op : {"mla_sparse_train", "mla_sparse_target", "mla_sparse_backward"}) {
          context().force(op, "cuda_many");
        }
        const SparseResult got = p.run(context(), 0);
        expect_sparse(p, got, SparseWant(p));
        EXPECT_TRUE(same_bits(p.run(context(), -1), got));
        EXPECT_TRUE(same_bits(p.run(context(), 0, 100), got));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// ---- the indexer

struct IndexGradients {
  Floats dq, dw, dk;
  Doubles kl;
};

class IndexProblem {
 public:
  IndexProblem(const IndexShape& s, int64_t tokens)
      : shape(s),
        n(tokens),
        q(quarters(n * s.heads * s.dim, 1)),
        w(random_floats(n * s.heads, 2)),
        k(quarters(n * s.dim, 3)) {
    for (float& v : w) v /= std::sqrt(static_cast<float>(s.heads * s.dim));
  }

  template <typename Run>
  IndexGradients run(KernelContext& context, const Run& run) const {
    const Device<float> q_(context, q), w_(context, w), k_(context, k), dq(context, q_.size());
    const Device<float> dw(context, w_.size()), dk(context, k_.size());
    const Device<double> kl(context, n);
    run(IndexerSequence<float>{q_.data(), w_.data(), k_.data(), n, shape.heads, shape.dim, 0.5,
                               kl.data(), dq.data(), dw.data(), dk.data()});
    return {dq.read(), dw.read(), dk.read(), kl.read()};
  }

  // `p_error`: relative, of the target. `reference` runs in double.
  template <typename Run>
  void expect(const IndexGradients& got, double p_error, const Run& reference) const {
    const Doubles q2(q.begin(), q.end()), w2(w.begin(), w.end()), k2(k.begin(), k.end());
    Doubles kl(static_cast<size_t>(n)), dq(q.size()), dw(w.size()), dk(k.size());
    reference(IndexerSequence<double>{q2.data(), w2.data(), k2.data(), n, shape.heads, shape.dim,
                                      0.5, kl.data(), dq.data(), dw.data(), dk.data()});
    const double product =
        largest_norm(q, shape.dim, 0, shape.dim) * largest_norm(k, shape.dim, 0, shape.dim);
    double score = 0;
    for (int64_t t = 0; t < n; ++t) {
      double sum = 0;
      for (int64_t j = 0; j < shape.heads; ++j)
        sum += std::fabs(w[static_cast<size_t>(t * shape.heads + j)]);
      score = std::max(score, sum * product);
    }
    const double score_error = static_cast<double>(shape.heads + 2) * kUnitF32 * score;
    // of a row's sum of |dI|, which is at most 2 scale, of its parts, and of sums of n
    const double row =
        0.5 * (2 * score_error + p_error + 8 * kUnitF32) + product_unit(n * shape.heads);
    const double weight = largest(w), rows = static_cast<double>(n * shape.heads);
    for (int64_t t = 0; t < n; ++t) {
      const double log_n = std::log(static_cast<double>(n)) + 2 * score;
      ASSERT_NEAR(got.kl[static_cast<size_t>(t)], kl[static_cast<size_t>(t)],
                  2 * score_error + p_error * (1 + log_n) + 1e-12);
    }
    expect_within(got.dw, dw, "dw", [&](int64_t) { return product * row; });
    expect_within(got.dq, dq, "dq", [&](int64_t) { return weight * row; });
    expect_within(got.dk, dk, "dk", [&](int64_t) { return weight * row * rows; });
  }

  IndexShape shape;
  int64_t n;
  Floats q, w, k;
};

// Through scores in memory (size 40), in tiles, and in tiles over a selection (size -k); factors
// apart, and rounded to bf16, also by two tiles at once.
TEST_F(TrainAttentionCuda, WarmUpLossIsTheReference) {
  for (const char* tiles : {"", "cuda", "cuda_wide"}) {
    if (*tiles != '\0') {
      product_error = kBf16;
      context().force("matmul", "cuda_bf16");
      context().force("indexer_kl_tiles", tiles);
    }
    for (const IndexShape& shape : kIndexShapes) {
      for (const int64_t tokens : {1, 63, 64, 65, 150}) {
        if (skip_case()) continue;
        SCOPED_TRACE("dim " + std::to_string(shape.dim) + " tokens " + std::to_string(tokens));
        const IndexProblem p(shape, tokens);
        const DenseProblem attention({3, 20, 6, 4}, tokens);
        const Device<float> q(context(), attention.q), kv(context(), attention.kv);
        const Device<float> k_pe(context(), attention.k_pe);
        const MlaSequence<float> in = attention.sequence(q.data(), kv.data(), k_pe.data());
        for (const int64_t size : {0, 40, -1, -33, -400}) {
          const int64_t words = selection_words(tokens);
          std::vector<uint64_t> bits(static_cast<size_t>(tokens * selection_words_in_all(tokens)));
          KernelContext host(1);
          if (size < 0) {
            const std::vector<int32_t> indices = selection(tokens, -size);
            mask_selection(host, {indices.data(), tokens, -size, {}, bits.data(), tokens, words});
          }
          const Device<uint64_t> there(context(), bits);
          const auto mask = [&](const uint64_t* at) {
            return size < 0 ? SelectionMask{at, tokens, words} : SelectionMask();
          };
          const auto once = [&] {
            return p.run(context(), [&](const IndexerSequence<float>& x) {
              if (size > 0) return indexer_kl_dense_cuda_by(context(), {x, in}, size);
              indexer_kl_dense<float>(context(), {x, in, {}, nullptr, mask(there.data())});
            });
          };
          const IndexGradients got = once(), again = once();
          EXPECT_TRUE(same_bits(got.dq, again.dq) && same_bits(got.dw, again.dw) &&
                      same_bits(got.dk, again.dk) && got.kl == again.kl);
          p.expect(got, attention.errors().probability, [&](const IndexerSequence<double>& x) {
            const Doubles q2(attention.q.begin(), attention.q.end());
            const Doubles kv2(attention.kv.begin(), attention.kv.end());
            const Doubles pe2(attention.k_pe.begin(), attention.k_pe.end());
            const MlaSequence<double> exact = attention.sequence(q2.data(), kv2.data(), pe2.data());
            indexer_kl_dense_reference<double>(host, {x, exact, {}, nullptr, mask(bits.data())});
          });
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(TrainAttentionCuda, SparseLossIsTheReferenceInBlocksOfAnySize) {
  for (const IndexShape& shape : kIndexShapes) {
    for (const int64_t tokens : {1, 63, 65, 150}) {
      for (const int64_t k : {1, 33, 64, 130}) {
        if (skip_case()) continue;
        SCOPED_TRACE("dim " + std::to_string(shape.dim) + " k " + std::to_string(k));
        const IndexProblem p(shape, tokens);
        const std::vector<int32_t> indices = selection(tokens, k);
        Floats target = random_floats(tokens * k, 9);
        for (int64_t t = 0; t < tokens; ++t) {
          float* row = target.data() + t * k;
          float sum = 0;
          for (int64_t i = 0; i < k; ++i) {
            row[i] = indices[static_cast<size_t>(t * k + i)] < 0 ? 0 : std::max(row[i], 0.0f);
            sum += row[i];
          }
          for (int64_t i = 0; i < k && sum > 0; ++i) row[i] /= sum;
        }
        const Device<int32_t> set(context(), indices);
        const Device<float> p_(context(), target);
        const auto run = [&](int64_t size) {
          return p.run(context(), [&](const IndexerSequence<float>& x) {
            const IndexerKlSparseArgs<float> a{x, set.data(), p_.data(), k};
            if (size == 0) return indexer_kl_sparse<float>(context(), a);
            indexer_kl_sparse_cuda_by(context(), a, size);
          });
        };
        const auto check = [&](const IndexGradients& got) {
          p.expect(got, 0, [&](const IndexerSequence<double>& x) {
            const Doubles target2(target.begin(), target.end());
            KernelContext host(1);
            indexer_kl_sparse_reference<double>(host, {x, indices.data(), target2.data(), k});
          });
        };
        context().force("indexer_kl_sparse", "cuda");
        const IndexGradients got = run(0), again = run(37);
        EXPECT_TRUE(same_bits(got.dq, again.dq) && same_bits(got.dw, again.dw) &&
                    same_bits(got.dk, again.dk) && got.kl == again.kl);
        const Ragged ragged(tokens);
        const Device<int32_t> position(context(), ragged.position);
        const std::vector<int32_t> rows =
            ragged.rows([&](int64_t, int64_t count) { return selection(count, k); });
        if (k > 1) {  // the targets above belong to the selections of one sequence
          const Device<int32_t> in_several(context(), rows);
          const auto kl = [&](const int32_t* selected, const TokenSequences& sequences) {
            return p.run(context(), [&](const IndexerSequence<float>& x) {
              indexer_kl_sparse<float>(context(), {x, selected, p_.data(), k, sequences});
            });
          };
          const IndexGradients a = kl(in_several.data(), {});
          const IndexGradients b = kl(in_several.data(), {position.data(), ragged.longest});
          EXPECT_TRUE(same_bits(a.dq, b.dq) && same_bits(a.dw, b.dw) && same_bits(a.dk, b.dk) &&
                      a.kl == b.kl);
        }
        check(got);
        for (const char* name : {"cuda_few", "cuda_many"}) {
          if (name == std::string("cuda_few") && shape.heads > 16) continue;
          context().force("indexer_kl_sparse", name);
          const IndexGradients few = run(0), once_more = run(0);
          EXPECT_TRUE(same_bits(few.dq, once_more.dq) && same_bits(few.dw, once_more.dw) &&
                      same_bits(few.dk, once_more.dk) && few.kl == once_more.kl);
          check(few);
          product_error = kBf16;
          context().force("train_products", "cuda_bf16");
          check(run(0));
          product_error = kTwoParts;
          context().force("train_products", "cuda");
          context().force("scatter_rows", "cuda_atomic");
          check(run(0));
          context().force("scatter_rows", "cuda");
        }
        if (HasFatalFailure()) return;
      }
    }
  }
}

}  // namespace
}  // namespace tamis
