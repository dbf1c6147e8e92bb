// Not-a-number anywhere in the weights ends the request that met it, with the layer's name, and
// nobody else's; and a decode loop that runs allocates nothing.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <new>

#include "engine/engine.h"
#include "invariance/runner.h"

namespace {
std::atomic<int64_t> g_allocations{0};
}  // namespace

// Not inlined, or gcc pairs our delete with the library's new and calls it a mismatch.
[[gnu::noinline]] void* operator new(std::size_t n) {
  ++g_allocations;
  if (void* p = std::malloc(n == 0 ? 1 : n)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace tamis {
namespace {

namespace fs = std::filesystem;

constexpr const char* kCase = "/tests/golden/model/f_glm_dsa";

// A copy of the small GLM case with one float of one tensor replaced.
class Poisoned {
 public:
  Poisoned(const std::string& tensor, int64_t element, float value) {
    folder = ::testing::TempDir() + "tamis_poison_" + std::to_string(::getpid());
    fs::remove_all(folder);
    fs::copy(std::string(TAMIS_SOURCE_DIR) + kCase, folder);
    const std::string path = folder + "/model.safetensors";
    int64_t offset;
    {
      const SafetensorsFile file(path);
      const TensorInfo* info = file.find(tensor);
      if (info == nullptr) throw std::runtime_error("no tensor " + tensor);
      offset = file.tensor(*info).data - file.file().data() + element * 4;
    }
    std::fstream out(path, std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(offset);
    out.write(reinterpret_cast<const char*>(&value), sizeof value);
  }
  ~Poisoned() { fs::remove_all(folder); }
  std::string folder;
};

EngineOptions engine_options(const LoadedModel& model) {
  EngineOptions o;
  o.policy.topk = model.config().index_topk;
  o.cache.pages = 64;
  return o;
}

// Runs one request of 40 tokens; returns its error, counts its tokens.
std::string run_one(const std::string& folder, int64_t* tokens) {
  KernelContext context(1, test_backend());
  const LoadedModel model(folder, {}, single_group());
  Engine engine(model, context, engine_options(model));
  Request r;
  r.prompt = random_ids(40, model.config().vocab_size, 1);
  r.max_tokens = 4;
  engine.submit(r);
  std::vector<TokenEvent> events;
  std::string error;
  while (!engine.idle()) {
    engine.step(events);
    for (const TokenEvent& e : events) {
      *tokens += e.token.id >= 0 ? 1 : 0;
      error += e.error;
    }
  }
  return error;
}

struct Poison {
  const char* tensor;
  const char* says;
};

class NotANumber : public ::testing::TestWithParam<std::tuple<Poison, float>> {};

TEST_P(NotANumber, EndsTheRequestAndNamesTheLayer) {
  const auto [poison, value] = GetParam();
  const Poisoned copy(poison.tensor, 0, value);
  int64_t tokens = 0;
  const std::string error = run_one(copy.folder, &tokens);
  EXPECT_NE(error.find(poison.says), std::string::npos) << error;
  EXPECT_EQ(tokens, 0);
}

INSTANTIATE_TEST_SUITE_P(
    Weights, NotANumber,
    ::testing::Combine(
        ::testing::Values(Poison{"model.layers.0.self_attn.q_a_proj.weight", "layer 0"},
                          Poison{"model.layers.1.self_attn.kv_b_proj.weight", "layer 1"},
                          Poison{"model.layers.3.self_attn.indexer.wq_b.weight", "layer 3"},
                          Poison{"model.layers.1.self_attn.indexer.wk.weight", "layer 1"},
                          Poison{"model.layers.3.self_attn.indexer.weights_proj.weight", "layer 3"},
                          Poison{"model.layers.2.input_layernorm.weight", "layer 2"},
                          Poison{"model.layers.2.mlp.gate.weight", "layer 2"},
                          Poison{"model.layers.4.mlp.shared_experts.down_proj.weight", "layer 4"},
                          Poison{"model.norm.weight", "final norm"},
                          Poison{"lm_head.weight", "head"}),
        ::testing::Values(std::numeric_limits<float>::quiet_NaN(),
                          std::numeric_limits<float>::infinity())));

// A poisoned embedding row ends the request that uses the token; its neighbour is untouched.
TEST(NotANumberInOneRequest, LeavesTheNeighbourAlone) {
  const std::string clean = std::string(TAMIS_SOURCE_DIR) + kCase;
  const LoadedModel good(clean, {}, single_group());
  const Poisoned copy("model.embed_tokens.weight", 5 * good.config().hidden_size,
                      std::numeric_limits<float>::quiet_NaN());
  const LoadedModel bad(copy.folder, {}, single_group());
  std::vector<int32_t> victim(40, 7), poisoned(40, 7);
  poisoned[20] = 5;
  Runner a(good, 2), b(bad, 2);
  CachedSequence s, t, u;
  const Logits want = a.step({{&s, victim}});
  const Logits got = b.step({{&t, victim}, {&u, poisoned}});
  EXPECT_EQ(std::memcmp(want.data(), got.data(), want.size() * sizeof(float)), 0);
  EXPECT_EQ(b.failed(), (std::vector<int32_t>{-1, 0}));
}

TEST(DecodeLoop, AllocatesNothing) {
  KernelContext context(2);
  const LoadedModel model(std::string(TAMIS_SOURCE_DIR) + "/models/tamis-mini", {}, single_group());
  Engine engine(model, context, engine_options(model));
  for (uint32_t i = 0; i < 3; ++i) {
    Request r;
    r.prompt = random_ids(300, model.config().vocab_size, i);
    r.max_tokens = 200;
    r.sampling.temperature = 0.8F;
    engine.submit(r);
  }
  std::vector<TokenEvent> events;
  for (int i = 0; i < 20; ++i) engine.step(events);  // prefill, and buffers reach their size
  const int64_t before = g_allocations;
  for (int i = 0; i < 50; ++i) engine.step(events);
  EXPECT_EQ(g_allocations - before, 0);
  // The counter counts.
  const auto* p = new int(1);
  EXPECT_EQ(g_allocations - before, 1);
  delete p;
}

}  // namespace
}  // namespace tamis
