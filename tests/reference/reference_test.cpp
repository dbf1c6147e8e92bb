// Whole models against the stored results of the reference implementations (docs/numerics.md has
// the tolerances and where they come from).
#include <gtest/gtest.h>

#include <cmath>

#include "engine/engine.h"
#include "reference/stored_case.h"

namespace tamis {
namespace {

struct Limit {
  const char* prefix;
  double max_abs, rel_rms;
};

// docs/numerics.md 7: what two float32 implementations may differ by; decisions must be equal.
constexpr Limit kLimits[] = {
    {"logits", 2e-4, 1e-5},        {"hidden.", 2e-4, 1e-5},       {"attn_out.", 2e-4, 1e-5},
    {"mlp_out.", 2e-4, 1e-5},      {"index_scores.", 1e-4, 1e-5}, {"kv_cache.", 2e-5, 1e-5},
    {"greedy.logits", 2e-4, 1e-5}, {"mtp.", 2e-4, 1e-5},          {"router.", 2e-4, 1e-5},
    {"rope.", 1e-6, 1e-6},         {"softmax_scale", 1e-6, 1e-6},
};

// Every stored float tensor within its limit, every stored integer equal.
int check_trace(const Case& c, const Trace& trace) {
  int compared = 0;
  for (const auto& [name, t] : trace) {
    const Tensor* want = c.find(name);
    if (want == nullptr) continue;
    SCOPED_TRACE(name);
    EXPECT_EQ(t.is_int ? t.ints.size() : t.floats.size(),
              static_cast<size_t>(want->shape.elements()));
    ++compared;
    if (t.is_int) {
      for (size_t i = 0; i < t.ints.size(); ++i) {
        EXPECT_EQ(t.ints[i], static_cast<int64_t>(tensor_element(*want, static_cast<int64_t>(i))));
      }
      continue;
    }
    const Error e = compare(t, *want);
    for (const Limit& l : kLimits) {
      if (name.rfind(l.prefix, 0) != 0) continue;
      EXPECT_LE(e.max_abs, l.max_abs);
      EXPECT_LE(e.rel_rms, l.rel_rms);
      break;
    }
  }
  return compared;
}

class Reference : public ::testing::TestWithParam<std::tuple<const char*, Backend>> {};

TEST_P(Reference, EveryStoredTensor) {
  const auto [name, backend] = GetParam();
  if (!case_folder(name)) GTEST_SKIP() << "set TAMIS_FIXTURES to run " << name;
  const Case c(name);
  LoadOptions load;
  TraceOptions options;
  load.with_mtp = options.mtp = c.find("mtp.logits") != nullptr;
  const Trace trace = trace_of(c, backend, load, options);
  EXPECT_GT(check_trace(c, trace), 15);
}

INSTANTIATE_TEST_SUITE_P(Cases, Reference,
                         ::testing::Combine(::testing::Values("a_fp32_dense", "b_fp32_sparse_yarn",
                                                              "c_bf16", "d_fp8", "d2_fp8_ragged",
                                                              "e_v3_dense", "f_glm_dsa"),
                                            ::testing::Values(Backend::kReference, test_backend())),
                         [](const auto& param) {
                           return std::string(std::get<0>(param.param)) + "_" +
                                  std::string(backend_name(std::get<1>(param.param)));
                         });

// 2,048 tokens, top-k 256: margins are so small that sets may differ where the stored margin is
// below 1e-4, by entries whose scores are that close.
TEST(ReferenceLong, SelectionsHiddenAndGreedy) {
  if (!case_folder("h_long")) GTEST_SKIP() << "set TAMIS_FIXTURES to run h_long";
  const Case c("h_long");
  const Trace trace = trace_of(c, test_backend(), {}, {});
  for (const std::string layer : {"0", "1"}) {
    const Tensor& want = *c.find("topk." + layer);
    const Tensor& margin = *c.find("topk_margin." + layer);
    const TraceTensor& got = trace.at("topk." + layer);
    const int64_t k = want.shape[1];
    for (int64_t t = 0; t < want.shape[0]; ++t) {
      if (tensor_element(margin, t) <= 1e-4F) continue;
      for (int64_t i = 0; i < k; ++i) {
        ASSERT_EQ(got.ints[static_cast<size_t>(t * k + i)],
                  static_cast<int64_t>(tensor_element(want, t * k + i)))
            << "layer " << layer << " token " << t;
      }
    }
  }
  const TraceTensor& logits = trace.at("logits");
  const Tensor& last = *c.find("logits_last64");
  const auto skip = static_cast<int64_t>(logits.floats.size()) - last.shape.elements();
  TraceTensor tail{{}, {logits.floats.begin() + skip, logits.floats.end()}, {}, false};
  const Error e = compare(tail, last);
  EXPECT_LE(e.max_abs, 2e-4);
  EXPECT_LE(e.rel_rms, 1e-5);
  const Tensor& greedy = *c.find("greedy.ids");
  for (int64_t i = 0; i < greedy.shape[0]; ++i) {
    EXPECT_EQ(trace.at("greedy.ids").ints[static_cast<size_t>(i)],
              static_cast<int64_t>(tensor_element(greedy, i)));
  }
}

// Three prompts of different lengths in one batch give what each gave alone in the reference.
TEST(ReferenceBatch, RaggedGreedy) {
  if (!case_folder("i_ragged_batch")) GTEST_SKIP() << "set TAMIS_FIXTURES to run i_ragged_batch";
  const Case c("i_ragged_batch");
  KernelContext context(2, test_backend());
  const LoadedModel model(c.folder, {}, single_group());
  EngineOptions options;
  options.policy.topk = model.config().index_topk;
  options.cache.pages = 16;
  options.chunk = 7;
  Engine engine(model, context, options);
  std::vector<std::vector<int64_t>> want(3), got(3);
  for (size_t j = 0; j < 3; ++j) {
    const std::string prefix = "prompt." + std::to_string(j) + ".";
    Request r;
    r.prompt = c.ids(prefix + "input_ids");
    r.max_tokens = 24;
    ASSERT_EQ(engine.submit(r), static_cast<int64_t>(j));
    for (const int32_t id : c.ids(prefix + "greedy.ids")) want[j].push_back(id);
  }
  std::vector<TokenEvent> events;
  while (!engine.idle()) {
    engine.step(events);
    for (const TokenEvent& e : events) {
      ASSERT_EQ(e.error, "");
      got[static_cast<size_t>(e.request)].push_back(e.token.id);
    }
  }
  EXPECT_EQ(got, want);
}

// The test must be able to fail: the layout that other engines shipped by mistake.
TEST(ReferenceControl, WrongIndexerRopeIsFarOff) {
  const Case c("b_fp32_sparse_yarn");
  LoadOptions load;
  load.model.swap_index_rope = true;
  const Trace trace = trace_of(c, test_backend(), load, {});
  EXPECT_GE(compare(trace.at("index_scores.0"), *c.find("index_scores.0")).rel_rms, 0.2);
  EXPECT_GE(compare(trace.at("logits"), *c.find("logits")).rel_rms, 1e-2);
}

TEST(ReferenceControl, ShiftedCacheChangesTheContinuation) {
  const Case c("b_fp32_sparse_yarn");
  TraceOptions options;
  options.shift_cache = true;
  const Trace trace = trace_of(c, test_backend(), {}, options);
  EXPECT_GE(compare(trace.at("greedy.logits"), *c.find("greedy.logits")).rel_rms, 1e-2);
}

}  // namespace
}  // namespace tamis
