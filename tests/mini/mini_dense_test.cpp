// models/tamis-mini-dense: the dense twin of the bundled model, restored from a difference, against
// what other programs said of it.
#include <gtest/gtest.h>

#include "base/json.h"
#include "checkpoint/convert.h"
#include "checkpoint/difference.h"
#include "convert/folders.h"
#include "eval/perplexity.h"
#include "support/test_backend.h"
#include "text/tokenizer.h"

namespace tamis {
namespace {

// Of the weights that a decoder of its own (numpy, from docs/formats/difference.md) restored.
constexpr char kWeights[] = "b36207b63f69af3ae2f1155874c26c37";
// The loss of the reference implementation (Hugging Face, float32, dense attention) on them: the
// last chunk of eval_clean_public.txt, its tokens from 8,192 on.
constexpr double kLoss = 2.717572;
constexpr int64_t kBegin = 8192, kScored = 518;
// Of a mean loss of two float32 implementations, as tests/golden/mini/expected.json states it.
constexpr double kTolerance = 0.0002;

TEST(MiniDense, RestoredHasTheWeightsAndTheLossOfItsCard) {
  const convert_test::TemporaryFolder folder(convert_test::fast_parent());
  ConvertOptions options;
  options.in = convert_test::mini();
  options.add = TAMIS_SOURCE_DIR "/models/tamis-mini-dense";
  options.out = folder.path("dense");
  options.threads = 2;
  convert(options);
  EXPECT_EQ(weights_checksum(Checkpoint::open(options.out)), kWeights);

  KernelContext context(2, test_backend());
  const LoadedModel model(options.out, {}, single_group());
  const Tokenizer tokenizer = Tokenizer::load(options.out + "/tokenizer.json");
  const std::string text = TAMIS_SOURCE_DIR "/tests/golden/mini/eval_clean_public.txt";
  const std::vector<int32_t> ids =
      tokenizer.encode(read_text_file(text, 1 << 20), SpecialTokens::kPlain);
  PerplexityOptions perplexity;
  perplexity.policy = {AttentionKind::kDense, model.config().index_topk, 1};
  const MeanLoss loss =
      measure_perplexity(context, model, std::span(ids).subspan(kBegin), perplexity, [](int64_t) {
      }).total;
  std::printf("dense twin: %.6f, stored %.6f\n", loss.mean(), kLoss);
  EXPECT_EQ(loss.tokens, kScored);
  EXPECT_NEAR(loss.mean(), kLoss, kTolerance);
}

}  // namespace
}  // namespace tamis
