#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "eval/trace.h"
#include "kernels/cross_entropy/cross_entropy.h"

namespace tamis {
namespace {

const std::string kFolder = TAMIS_SOURCE_DIR "/tests/golden/model/b_fp32_sparse_yarn";

std::vector<int32_t> make_ids(int64_t n) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  uint32_t state = 1;
  for (int32_t& id : ids) {
    state = state * 1664525 + 1013904223;
    id = static_cast<int32_t>(state >> 8) % 272;
  }
  return ids;
}

class PerplexityTest : public ::testing::Test {
 protected:
  PerplexityTest() : context_(1), model_(kFolder, {}, single_group()) {
    options_.policy.topk = model_.config().index_topk;
    options_.context = 48;
    options_.forward = 16;
  }
  PerplexityResult measure(const std::vector<int32_t>& ids) {
    return measure_perplexity(context_, model_, ids, options_,
                              [&](int64_t tokens) { progress_ += tokens; });
  }

  KernelContext context_;
  LoadedModel model_;
  PerplexityOptions options_;
  int64_t progress_ = 0;
};

TEST_F(PerplexityTest, IsTheLossOfTheLogitsOfATrace) {
  const std::vector<int32_t> ids = make_ids(40);
  const PerplexityResult r = measure(ids);
  TraceOptions trace_options;
  trace_options.policy = options_.policy;
  const Trace trace = record_trace(context_, model_, ids, trace_options);
  std::vector<double> losses(39);
  cross_entropy(context_,
                {trace.at("logits").floats.data(), ids.data() + 1, 39, 272, losses.data()});
  EXPECT_EQ(r.total.tokens, 39);
  EXPECT_EQ(r.total.sum, std::accumulate(losses.begin(), losses.end(), 0.0));
  EXPECT_DOUBLE_EQ(r.perplexity(), std::exp(r.total.mean()));
  EXPECT_DOUBLE_EQ(r.bits_per_byte(100), r.total.sum / std::log(2.0) / 100);
}

TEST_F(PerplexityTest, ChunksAreScoredAlone) {
  const std::vector<int32_t> ids = make_ids(48 + 48 + 1 + 20);
  const PerplexityResult whole = measure(ids);
  ASSERT_EQ(whole.chunks.size(), 3U);
  for (size_t i = 0; i < 3; ++i) {
    const size_t begin = i * 48, end = std::min<size_t>(begin + 48, ids.size());
    const PerplexityResult alone = measure(
        {ids.begin() + static_cast<int64_t>(begin), ids.begin() + static_cast<int64_t>(end)});
    EXPECT_EQ(alone.total.sum, whole.chunks[i].loss.sum);
    EXPECT_EQ(alone.total.tokens, whole.chunks[i].loss.tokens);
  }
  EXPECT_EQ(whole.total.tokens, 47 + 47 + 20);
  EXPECT_EQ(whole.read_tokens, 117);
}

TEST_F(PerplexityTest, DocumentsAreScoredAlone) {
  const std::vector<int32_t> ids = make_ids(130);
  const auto at = [&](int64_t begin, int64_t end) {
    return std::vector<int32_t>(ids.begin() + begin, ids.begin() + end);
  };
  // The second has a last chunk of one token, which is left out.
  const std::vector<std::vector<int32_t>> documents = {at(0, 60), at(60, 109), at(109, 130)};
  const PerplexityResult r =
      measure_perplexity(context_, model_, documents, options_, [](int64_t) {});
  const std::vector<std::vector<int32_t>> chunks = {at(0, 48), at(48, 60), at(60, 108),
                                                    at(109, 130)};
  const int64_t document[] = {0, 0, 1, 2}, begin[] = {0, 48, 0, 0};
  ASSERT_EQ(r.chunks.size(), 4U);
  for (size_t i = 0; i < 4; ++i) {
    const PerplexityResult alone = measure(chunks[i]);
    EXPECT_EQ(r.chunks[i].loss.sum, alone.total.sum);
    EXPECT_EQ(r.chunks[i].document, document[i]);
    EXPECT_EQ(r.chunks[i].begin, begin[i]);
    ASSERT_EQ(r.chunks[i].by_position.size(), r.by_position.size());
    EXPECT_EQ(r.chunks[i].by_position[0].sum, alone.total.sum);  // 48 tokens are one range
  }
  EXPECT_EQ(r.read_tokens, 48 + 12 + 48 + 21);
  EXPECT_THROW(measure_perplexity(context_, model_, std::vector<std::vector<int32_t>>{at(0, 1)},
                                  options_, [](int64_t) {}),
               InputError);
}

TEST_F(PerplexityTest, AChunkOfOneTokenScoresNothing) {
  const PerplexityResult r = measure(make_ids(49));
  ASSERT_EQ(r.chunks.size(), 2U);
  EXPECT_EQ(r.chunks[1].loss.tokens, 0);
  EXPECT_EQ(r.chunks[1].loss.mean(), 0);
  EXPECT_EQ(r.total.tokens, 47);
  EXPECT_EQ(progress_, 47);
}

TEST_F(PerplexityTest, TheSameBitsForEveryForwardLength) {
  const std::vector<int32_t> ids = make_ids(100);
  const double want = measure(ids).total.sum;
  for (const int64_t forward : {1, 7, 47, 48, 1000}) {
    options_.forward = forward;
    EXPECT_EQ(measure(ids).total.sum, want) << forward;
  }
}

TEST_F(PerplexityTest, RangesOfContext) {
  options_.context = 300;
  options_.forward = 300;
  const PerplexityResult r = measure(make_ids(300));
  ASSERT_EQ(r.by_position.size(), 2U);
  EXPECT_EQ(r.by_position[0].first, 1);
  EXPECT_EQ(r.by_position[0].last, 255);
  EXPECT_EQ(r.by_position[0].loss.tokens, 255);
  EXPECT_EQ(r.by_position[1].last, 511);
  EXPECT_EQ(r.by_position[1].loss.tokens, 44);
  EXPECT_NEAR(r.by_position[0].loss.sum + r.by_position[1].loss.sum, r.total.sum,
              1e-12 * r.total.sum);
}

TEST_F(PerplexityTest, LimitStopsAfterTheFirstChunks) {
  options_.limit_chunks = 2;
  const PerplexityResult r = measure(make_ids(200));
  EXPECT_EQ(r.chunks.size(), 2U);
  EXPECT_EQ(r.read_tokens, 96);
}

TEST_F(PerplexityTest, RefusesWhatCannotBeScored) {
  EXPECT_THROW(measure({}), InputError);
  EXPECT_THROW(measure({5}), InputError);
  EXPECT_THROW(measure({5, 272}), InputError);
  EXPECT_THROW(measure({-1, 5}), InputError);
  options_.context = 1;
  EXPECT_THROW(measure({5, 6}), UsageError);
  options_.context = model_.config().max_position + 1;
  EXPECT_THROW(measure({5, 6}), UsageError);
}

// A copy of the model whose layer 2 has one NaN.
class BrokenModel {
 public:
  BrokenModel() : folder(std::filesystem::temp_directory_path() / "tamis-perplexity-nan") {
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
    for (const auto& entry : std::filesystem::directory_iterator(kFolder)) {
      if (entry.is_regular_file())
        std::filesystem::copy_file(entry, folder / entry.path().filename());
    }
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() == ".safetensors") poison(entry.path());
    }
  }
  ~BrokenModel() { std::filesystem::remove_all(folder); }

  std::filesystem::path folder;
  int poisoned = 0;

 private:
  void poison(const std::filesystem::path& path) {
    int64_t offset = -1;
    {
      const SafetensorsFile file(path.string());
      for (const TensorInfo& t : file.header().tensors) {
        if (t.name == "model.layers.2.self_attn.o_proj.weight") {
          offset = file.header().header_bytes + t.offset;
        }
      }
    }
    if (offset < 0) return;
    std::fstream out(path, std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(offset);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    out.write(reinterpret_cast<const char*>(&nan), sizeof nan);
    ++poisoned;
  }
};

TEST(PerplexityBroken, NamesTheLayerOfANaN) {
  const BrokenModel broken;
  ASSERT_EQ(broken.poisoned, 1);
  KernelContext context(1);
  const LoadedModel model(broken.folder.string(), {}, single_group());
  PerplexityOptions options;
  options.policy.topk = model.config().index_topk;
  options.context = 32;
  try {
    measure_perplexity(context, model, make_ids(40), options, [](int64_t) {});
    FAIL() << "a NaN was scored";
  } catch (const InputError& e) {
    EXPECT_NE(std::string(e.what()).find("layer 2 "), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace tamis
