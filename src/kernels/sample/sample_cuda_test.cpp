#include <cmath>
#include <cstring>
#include <random>

#include "kernels/sample/sample.h"
#include "kernels/sample/sample_weight.h"
#include "support/cuda_device.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

constexpr int kKinds = 6;

// Logits of a model's size, with ties, peaks and zeros of both signs.
std::vector<float> logits_of(int kind, int64_t vocab, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> x(static_cast<size_t>(vocab));
  for (size_t i = 0; i < x.size(); ++i) {
    const float v = normal(rng);
    const float list[kKinds] = {v,
                                std::round(v),
                                i % 97 == 5 ? 20 + v / 100 : v,
                                i % 2 == 0 ? 0.0F : -0.0F,
                                -static_cast<float>(i),
                                v * 1e30F};
    x[i] = list[kind];
  }
  return x;
}

std::vector<SampleRow> all_settings(int64_t vocab, std::mt19937* rng) {
  std::vector<SampleRow> rows;
  for (const float temperature : {0.0F, 0.01F, 0.8F, 100.0F}) {
    for (const int64_t top_k : {int64_t{0}, int64_t{1}, int64_t{40}, vocab}) {
      for (const float top_p : {1.0F, 0.9F, 1e-6F}) {
        for (const float min_p : {0.0F, 0.05F, 1.0F}) {
          SampleRow r;
          r.temperature = temperature;
          r.top_k = top_k;
          r.top_p = top_p;
          r.min_p = min_p;
          r.random = (uint64_t{(*rng)()} << 32) + (*rng)();
          rows.push_back(r);
        }
      }
    }
  }
  rows[0].random = 0;
  rows[1].random = rows.back().random = UINT64_MAX;
  return rows;
}

class SampleCuda : public CudaTest {
 protected:
  // Draws of the device and of the host from the same logits, a row for each setting.
  void expect_host(const std::vector<float>& row, const std::vector<SampleRow>& rows,
                   const std::vector<SampleEdit>& edits) {
    const auto vocab = static_cast<int64_t>(row.size()), count = static_cast<int64_t>(rows.size());
    std::vector<float> all;
    for (int64_t r = 0; r < count; ++r) all.insert(all.end(), row.begin(), row.end());
    Device<float> x(context(), all);
    Device<SampleRow> d_rows(context(), rows);
    Device<SampleEdit> d_edits(context(), edits);
    PinnedBuffer out(*context().device(), count * 4);
    auto* tokens = reinterpret_cast<int32_t*>(out.data());
    std::fill_n(tokens, count, -7);
    sample_tokens(context(), {x.data(), count, vocab, d_rows.data(), d_edits.data(), tokens});
    context().device()->synchronize();
    for (size_t r = 0; r < rows.size(); ++r) {
      const SampleRow& s = rows[r];
      std::vector<SampleCandidate> candidates;
      for (size_t i = 0; i < row.size(); ++i) candidates.push_back({row[i], static_cast<int>(i)});
      for (int64_t e = s.first_edit; e < s.first_edit + s.edits; ++e) {
        const SampleEdit& edit = edits[static_cast<size_t>(e)];
        float& logit = candidates[static_cast<size_t>(edit.id)].logit;
        logit = edited_logit(logit, edit, s);
      }
      ASSERT_EQ(tokens[r], s.chooses() ? draw_token(candidates, s) : -7)
          << "vocabulary " << vocab << " temperature " << s.temperature << " top_k " << s.top_k
          << " top_p " << s.top_p << " min_p " << s.min_p << " random " << s.random;
    }
  }
};

TEST_F(SampleCuda, DrawsTheHostsTokens) {
  std::mt19937 rng(1);
  for (const int64_t vocab : {1, 2, 31, 1000, 8192, 129'280}) {
    for (int kind = 0; kind < kKinds; ++kind) {
      if (skip_case()) continue;
      std::vector<SampleRow> rows = all_settings(vocab, &rng);
      if (vocab > 8192) rows.erase(rows.begin(), rows.begin() + 80 + 4 * kind);
      if (vocab > 8192) rows.resize(12);
      expect_host(logits_of(kind, vocab, static_cast<uint32_t>(vocab + kind)), rows, {});
    }
  }
}

TEST_F(SampleCuda, EditsAreTheHosts) {
  std::mt19937 rng(2);
  for (const int64_t vocab : {1, 300, 8192}) {
    std::vector<SampleRow> rows = all_settings(vocab, &rng);
    std::vector<SampleEdit> edits;
    for (size_t r = 0; r < rows.size(); ++r) {
      if (r % 5 == 0) continue;
      rows[r].first_edit = static_cast<int64_t>(edits.size());
      rows[r].repetition = r % 2 == 0 ? 1.3F : 0.7F;
      rows[r].presence = static_cast<float>(r % 3) - 1;
      rows[r].frequency = 0.25F;
      for (int32_t id = static_cast<int32_t>(r % 7); id < vocab; id += 1 + static_cast<int>(r)) {
        edits.push_back({id, rng() % 4 == 0 ? 5.0F : 0.0F, static_cast<uint32_t>(rng() % 2),
                         static_cast<uint32_t>(rng() % 3)});
      }
      rows[r].edits = static_cast<int64_t>(edits.size()) - rows[r].first_edit;
    }
    expect_host(logits_of(0, vocab, 3), rows, edits);
  }
}

}  // namespace
}  // namespace tamis
