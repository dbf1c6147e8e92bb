// Whole runs: a small model through dense training, warm-up and sparse training on the text of this
// repository; runs that stop and go on; and what is refused.
#include "train/trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/scratch_folder.h"
#include "kernels/tolerance.h"
#include "train/event_file.h"
#include "train/sparse_form.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = R"({"model_type": "deepseek_v32", "vocab_size": 8192,
  "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
  "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 4,
  "v_head_dim": 12, "intermediate_size": 64, "moe_intermediate_size": 24, "n_routed_experts": 4,
  "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
  "first_k_dense_replace": 1, "moe_layer_freq": 1, "routed_scaling_factor": 1.0,
  "norm_topk_prob": true, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
  "index_n_heads": 4, "index_head_dim": 8, "index_topk": 16, "rms_norm_eps": 1e-6,
  "rope_theta": 10000, "rope_scaling": null, "max_position_embeddings": 128,
  "tie_word_embeddings": false, "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1,
  "num_nextn_predict_layers": 0, "attention_bias": false, "initializer_range": 0.05})";

constexpr const char* kRecipe = R"(
[model]
config = "config.json"
tokenizer = "tokenizer"
[data]
train = "data"
[run]
out = "run"
seed = 3
save_every = 4
keep_last = 1
export = "f32"
[[stage]]
kind = "pretrain"
steps = 40
batch = 4
micro_batch = 3
length = 64
lr = 1e-2
warmup_steps = 4
schedule = "cosine"
[[stage]]
kind = "warmup"
steps = 25
batch = 4
micro_batch = 4
length = 64
lr = 1e-2
[[stage]]
kind = "sparse"
steps = 12
batch = 4
micro_batch = 2
length = 64
topk = 16
lr = 1e-3
)";

// Made once: tokenizer, data and recipe in one folder.
class Workshop {
 public:
  Workshop() {
    const fs::path source = TAMIS_SOURCE_DIR;
    fs::create_directories(folder_ / "tokenizer");
    fs::copy_file(source / "tests/golden/tokenizer/small_bpe.tokenizer.json",
                  folder_ / "tokenizer/tokenizer.json");
    folder_.write("config.json", kConfig);
    folder_.write("train.toml", kRecipe);
    DataBuildOptions data;
    data.tokenizer = folder_ / "tokenizer";
    data.out = folder_ / "data";
    data.inputs = {(source / "docs").string(), (source / "README.md").string()};
    data.shard_tokens = 20000;  // several shards
    built_ = build_data(data, [](int64_t, int64_t) {});
  }
  std::string operator/(const std::string& name) const { return folder_ / name; }
  const ScratchFolder& folder() const { return folder_; }
  const DataBuildResult& built() const { return built_; }

 private:
  ScratchFolder folder_;
  DataBuildResult built_;
};

class Runs : public testing::Test {
 protected:
  static void SetUpTestSuite() { workshop_ = std::make_unique<Workshop>(); }
  static void TearDownTestSuite() { workshop_.reset(); }

  // A recipe whose results go to a folder of their own.
  Recipe recipe(const std::string& out, std::vector<std::string> settings = {}) const {
    settings.push_back("run.out=\"" + *workshop_ / out + "\"");
    return Recipe::load(*workshop_ / "train.toml", settings);
  }
  std::vector<StepReport> run(const Recipe& r, int64_t last_step = 1 << 30, int threads = 1) {
    KernelContext context(threads);
    Trainer trainer(r, context);
    std::vector<StepReport> reports;
    trainer.run(last_step, [&](const StepReport& report) { reports.push_back(report); });
    return reports;
  }
  void expect_refused(const std::vector<std::string>& settings, const std::string& why) {
    try {
      KernelContext context(1);
      Trainer trainer(recipe("refused", settings), context);
      ADD_FAILURE() << "not refused: " << why;
    } catch (const InputError& e) {
      EXPECT_NE(std::string(e.what()).find(why), std::string::npos) << e.what();
    }
  }
  static std::string bytes(const std::string& path) { return read_text_file(path, 1 << 30); }

  static std::unique_ptr<Workshop> workshop_;
};
std::unique_ptr<Workshop> Runs::workshop_;

double mean_loss(const std::vector<StepReport>& r, size_t begin, size_t end) {
  double sum = 0;
  for (size_t i = begin; i < end; ++i) sum += r[i].loss;
  return sum / static_cast<double>(end - begin);
}

double kl_of(const StepReport& r) {
  double sum = 0;
  for (const double kl : r.kl) sum += kl;
  return sum;
}

TEST_F(Runs, DenseThenWarmUpThenSparse) {
  const std::vector<StepReport> r = run(recipe("three"));
  ASSERT_EQ(r.size(), 77U);
  EXPECT_GT(workshop_->built().shards, 1);
  EXPECT_NEAR(r[0].loss, std::log(8192), 0.5) << "a fresh model knows nothing";
  EXPECT_LT(mean_loss(r, 35, 40), r[0].loss - 1.5);
  for (size_t i = 40; i < 65; ++i) EXPECT_TRUE(std::isnan(r[i].loss));
  EXPECT_LT(kl_of(r[64]), 0.8 * kl_of(r[40]));
  EXPECT_LT(mean_loss(r, 65, 77), mean_loss(r, 30, 40) + 0.3) << "sparse goes on where dense was";
  for (const StepReport& report : r) {
    EXPECT_FALSE(report.skipped);
    EXPECT_GT(report.flops, 0);
  }

  // The model folders: dense without an indexer, then with one. The warm-up moved nothing else.
  const Checkpoint dense = Checkpoint::open(*workshop_ / "three/pretrain");
  const Checkpoint warm = Checkpoint::open(*workshop_ / "three/warmup");
  EXPECT_EQ(ModelConfig::parse(dense.config_text(), "dense").model_type, "deepseek_v3");
  EXPECT_EQ(ModelConfig::parse(warm.config_text(), "warm").index_topk, 16);
  EXPECT_EQ(dense.find("model.layers.0.self_attn.indexer.wk.weight"), nullptr);
  EXPECT_NE(warm.find("model.layers.0.self_attn.indexer.wk.weight"), nullptr);
  for (const Checkpoint::Entry& e : dense.entries()) {
    const Tensor a = dense.tensor(e.info->name), b = warm.tensor(e.info->name);
    ASSERT_EQ(std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes())), 0) << e.info->name;
  }
}

TEST_F(Runs, GoingOnGivesTheBitsOfNeverStopping) {
  const std::vector<std::string> shorter = {"stage.0.steps=5", "stage.1.steps=4",
                                            "stage.2.steps=5"};
  run(recipe("whole", shorter), 1 << 30, 1);
  // Stops inside each stage and at a boundary, on another number of threads.
  for (const int64_t stop : {2, 5, 7, 11, 14}) run(recipe("parts", shorter), stop, 2);
  const std::string end = "checkpoints/step-00000014-end.safetensors";
  const auto file = [&](const std::string& out) {
    return SafetensorsFile(*workshop_ / (out + "/" + end));
  };
  const SafetensorsFile a = file("whole"), b = file("parts");
  for (const TensorInfo& info : a.header().tensors) {
    const Tensor x = a.tensor(info), y = b.tensor(*b.find(info.name));
    ASSERT_EQ(std::memcmp(x.data, y.data, static_cast<size_t>(x.bytes())), 0) << info.name;
  }
  for (const char* stage : {"pretrain", "warmup", "sparse"}) {
    const std::string model = std::string("/") + stage + "/model.safetensors";
    EXPECT_EQ(bytes(*workshop_ / ("whole" + model)), bytes(*workshop_ / ("parts" + model)));
  }
  // The log has each step once.
  std::ifstream log(*workshop_ / "parts/log.jsonl");
  int64_t step = 0;
  for (std::string line; std::getline(log, line);) {
    EXPECT_NE(line.find("\"step\":" + std::to_string(++step) + ","), std::string::npos) << line;
  }
  EXPECT_EQ(step, 14);
}

// Runs on several ranks, as threads.
class RunsOnRanks : public Runs {
 protected:
  std::vector<StepReport> on(int ranks, const std::string& out, std::vector<std::string> more = {},
                             int64_t last_step = 1 << 30) {
    more.insert(more.begin(), kShort.begin(), kShort.end());
    std::vector<StepReport> reports;
    run_as_threads(ranks, [&](Group& group) {
      KernelContext context(1);
      Trainer trainer(recipe(out, more), context, group);
      trainer.run(last_step, [&](const StepReport& r) {
        if (group.rank() == 0) reports.push_back(r);
      });
    });
    return reports;
  }
  static void expect_same_end(const std::string& one, const std::string& other) {
    const std::string end = "/checkpoints/step-00000009-end.safetensors";
    const SafetensorsFile a(*workshop_ / (one + end)), b(*workshop_ / (other + end));
    for (const TensorInfo& info : a.header().tensors) {
      const Tensor x = a.tensor(info), y = b.tensor(*b.find(info.name));
      ASSERT_EQ(std::memcmp(x.data, y.data, static_cast<size_t>(x.bytes())), 0)
          << other << ": " << info.name;
    }
  }
  static void expect_same_reports(const std::vector<StepReport>& one,
                                  const std::vector<StepReport>& other) {
    ASSERT_EQ(other.size(), one.size());
    for (size_t i = 0; i < one.size(); ++i) {
      EXPECT_TRUE(other[i].loss == one[i].loss || std::isnan(one[i].loss)) << i;
      EXPECT_EQ(other[i].kl, one[i].kl);
      EXPECT_EQ(other[i].balance, one[i].balance);
      EXPECT_EQ(other[i].norm_model, one[i].norm_model);
      EXPECT_EQ(other[i].norm_indexer, one[i].norm_indexer);
      EXPECT_EQ(other[i].most_loaded, one[i].most_loaded);
      ASSERT_EQ(other[i].validation.has_value(), one[i].validation.has_value());
      if (!one[i].validation) continue;
      EXPECT_EQ(other[i].validation->sources[0].loss, one[i].validation->sources[0].loss);
      EXPECT_EQ(other[i].validation->health[1].kl, one[i].validation->health[1].kl);
    }
  }

  const std::vector<std::string> kShort = {
      "stage.0.steps=3",       "stage.1.steps=3",
      "stage.2.steps=3",       "stage.0.micro_batch=1",
      "stage.1.micro_batch=3", "stage.2.micro_batch=2",
      "run.validate_every=2",  R"(data.validation=[{task = "copy", words = 4}])"};
};

// Ranks share the micro-batches of a step; also when there are more ranks than those, when a run
// goes on with another number of ranks, and when they share the experts.
TEST_F(RunsOnRanks, AnyNumberOfRanksGivesTheSameBits) {
  const std::vector<std::string> experts2 = {"run.expert_parallel=2"};
  const std::vector<StepReport> one = run(recipe("one", kShort));
  for (const int ranks : {2, 3}) {
    const std::string out = "ranks" + std::to_string(ranks);
    expect_same_reports(one, on(ranks, out));
    expect_same_end("one", out);
  }
  for (const int ranks : {2, 4}) {
    const std::string out = "experts" + std::to_string(ranks);
    expect_same_reports(one, on(ranks, out, experts2));
    expect_same_end("one", out);
  }
  on(4, "changing", {}, 2);
  on(1, "changing", {}, 4);
  on(2, "changing", experts2, 5);
  on(4, "changing", {"run.expert_parallel=4"}, 8);
  on(2, "changing");
  expect_same_end("one", "changing");
}

// Blocks of FP8 factors begin with an expert's rows, wherever those are.
TEST_F(RunsOnRanks, Fp8GivesTheSameBits) {
  const std::vector<std::string> fp8 = {"run.precision=fp8"};
  std::vector<std::string> alone = kShort;
  alone.insert(alone.end(), fp8.begin(), fp8.end());
  const std::vector<StepReport> one = run(recipe("fp8", alone));
  EXPECT_NEAR(one[0].loss, std::log(8192), 0.5);
  EXPECT_NE(one[0].loss, run(recipe("not_fp8", kShort), 1)[0].loss);
  expect_same_reports(one, on(2, "fp8_experts", {fp8[0], "run.expert_parallel=2"}));
  expect_same_end("fp8", "fp8_experts");
  on(2, "fp8_parts", fp8, 4);
  on(1, "fp8_parts", fp8);
  expect_same_end("fp8", "fp8_parts");
}

// Tensor parallelism adds over heads and columns in another order than one rank, but always in the
// same: a run that stops and goes on has the bits of one that does not.
TEST_F(RunsOnRanks, TensorParallelRunsGoOnWithTheirOwnBits) {
  const std::vector<std::string> divided = {"run.tensor_parallel=2", "run.expert_parallel=2"};
  const std::vector<StepReport> one = run(recipe("one_more", kShort), 1);
  const std::vector<StepReport> whole = on(4, "tensors", divided);
  on(4, "tensor_parts", divided, 2);
  on(4, "tensor_parts", divided, 5);
  on(4, "tensor_parts", divided);
  expect_same_end("tensors", "tensor_parts");
  // One step of the same model: sums of at most 8192 terms through two layers of 20 operations.
  const double unit = 2 * 40 * 8192 * kUnitF32;
  EXPECT_NEAR(whole[0].loss, one[0].loss, unit * one[0].loss);
  EXPECT_NEAR(whole[0].norm_model, one[0].norm_model, unit * one[0].norm_model);
  EXPECT_NE(whole[0].norm_model, one[0].norm_model) << "another order";
}

TEST_F(RunsOnRanks, RefusesLayoutsThatDoNotFit) {
  const auto refused = [&](int ranks, const std::vector<std::string>& settings,
                           const std::string& why) {
    try {
      on(ranks, "refused_layout", settings, 1);
      ADD_FAILURE() << "not refused: " << why;
    } catch (const InputError& e) {
      EXPECT_NE(std::string(e.what()).find(why), std::string::npos) << e.what();
    }
  };
  refused(1, {"run.expert_parallel=2"}, "mpirun -n 2");
  refused(3, {"run.expert_parallel=3"}, "3 does not divide the model's 4 experts");
  refused(4, {"run.tensor_parallel=4"}, "4 does not divide the model's 2 attention heads");
  try {
    run_as_threads(2, [&](Group& group) {
      KernelContext context(1);
      const std::string seed = "run.seed=" + std::to_string(group.rank());
      Trainer trainer(recipe("disagree", {seed}), context, group);
    });
    ADD_FAILURE() << "ranks with different recipes were not refused";
  } catch (const InputError& e) {
    EXPECT_NE(std::string(e.what()).find("give all of them the same"), std::string::npos);
  }
}

TEST_F(Runs, ASequenceIsAFunctionOfSeedAndNumber) {
  TokenData data(*workshop_ / "data");
  MicroBatch a, b;
  data.append(3, 17, 64, a);
  data.append(3, 17, 64, b);
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_EQ(a.begins, b.begins);
  data.append(3, 18, 64, b);
  EXPECT_FALSE(std::equal(a.ids.begin(), a.ids.end(), b.ids.begin() + 64));
  ASSERT_EQ(b.tokens(), 128);
  EXPECT_EQ(b.begins.back(), 128);
  for (size_t i = 0; i + 1 < a.ids.size(); ++i) {
    const bool boundary = std::count(a.begins.begin(), a.begins.end(), static_cast<int64_t>(i) + 1);
    EXPECT_EQ(a.targets[i], boundary ? -1 : a.ids[i + 1]);
  }
}

std::vector<Json> log_lines(const std::string& path) {
  std::vector<Json> lines;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) lines.push_back(parse_json(line, path));
  return lines;
}

// Every record of an event file, its checksums checked; scalars as TAG -> how many.
std::map<std::string, int> event_tags(const std::string& folder) {
  std::map<std::string, int> tags;
  std::string text;
  int files = 0;
  for (const auto& e : fs::directory_iterator(folder)) {
    text = read_text_file(e.path(), 1 << 30);
    ++files;
  }
  EXPECT_EQ(files, 1);
  const auto u32 = [&](size_t at) {
    uint32_t v;
    std::memcpy(&v, text.data() + at, 4);
    return v;
  };
  const auto masked = [](std::string_view bytes) {
    const uint32_t crc = crc32c(bytes);
    return ((crc >> 15) | (crc << 17)) + 0xA282EAD8U;
  };
  for (size_t at = 0; at < text.size();) {
    uint64_t length;
    std::memcpy(&length, text.data() + at, 8);
    EXPECT_EQ(u32(at + 8), masked(std::string_view(text).substr(at, 8)));
    const std::string_view event = std::string_view(text).substr(at + 12, length);
    EXPECT_EQ(u32(at + 12 + length), masked(event));
    for (const char* tag :
         {"train/loss", "train/kl/1", "validation/copy/loss", "indexer/recall/0"}) {
      tags[tag] += event.find(tag) != std::string::npos ? 1 : 0;
    }
    at += 16 + length;
  }
  return tags;
}

TEST_F(Runs, ValidatesAndLogs) {
  EXPECT_EQ(crc32c("123456789"), 0xE3069283U) << "RFC 3720's polynomial, its catalogue check value";
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAU) << "RFC 3720, B.4";
  const std::vector<std::string> settings = {
      R"(data.validation=[{shards = "data"}, {task = "copy", words = 4}])",
      "run.validate_every=3",
      "run.validation_sequences=5",
      "run.save_every=2",
      "stage.0.steps=4",
      "stage.1.steps=3",
      "stage.2.steps=3"};
  const std::vector<StepReport> r = run(recipe("validated", settings));
  for (const int64_t step : {3, 4, 7, 10}) {
    const StepReport& report = r[static_cast<size_t>(step) - 1];
    ASSERT_TRUE(report.validation) << step;
    ASSERT_EQ(report.validation->sources.size(), 2U);
    EXPECT_GT(report.validation->sources[1].targets, 50);
    EXPECT_EQ(report.validation->health.size(), 2U);
  }
  EXPECT_FALSE(r[4].validation);
  // The warm-up changes no weight of the model.
  // Its validation has other micro-batches: the sum of the same losses in another order.
  const double before = r[3].validation->sources[0].loss;
  EXPECT_NEAR(r[6].validation->sources[0].loss, before, 1e-12 * before);
  EXPECT_NE(r[3].validation->health[0].kl, r[6].validation->health[0].kl);

  for (const int64_t stop : {1, 3, 5}) run(recipe("validated_parts", settings), stop);
  run(recipe("validated_parts", settings));
  std::vector<Json> whole = log_lines(*workshop_ / "validated/log.jsonl");
  std::vector<Json> parts = log_lines(*workshop_ / "validated_parts/log.jsonl");
  ASSERT_EQ(whole.size(), 14U);
  ASSERT_EQ(parts.size(), 14U);
  for (size_t i = 0; i < whole.size(); ++i) {
    for (Json* line : {&whole[i], &parts[i]}) {
      for (const char* own : {"time", "seconds", "memory_mib"}) line->erase(own);
      if (line->contains("validation")) (*line)["validation"].erase("seconds");
    }
    EXPECT_EQ(whole[i], parts[i]);
  }
  for (const char* out : {"validated", "validated_parts"}) {
    std::map<std::string, int> tags = event_tags(*workshop_ / (std::string(out) + "/tensorboard"));
    EXPECT_EQ(tags["train/loss"], 7);
    EXPECT_EQ(tags["train/kl/1"], 6);
    EXPECT_EQ(tags["validation/copy/loss"], 4);
    EXPECT_EQ(tags["indexer/recall/0"], 4);
  }
}

// Conversations about the letters, and exercises: a mixture that goes through every stage.
TEST_F(Runs, WithoutSavingOnlyTheLogsStay) {
  const std::vector<std::string> settings = {"stage.0.steps=2", "stage.1.steps=2",
                                             "stage.2.steps=2"};
  std::vector<std::string> unsaved = settings;
  unsaved.emplace_back("run.save=false");
  const std::vector<StepReport> want = run(recipe("saved", settings));
  const std::vector<StepReport> got = run(recipe("unsaved", unsaved));
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_TRUE(got[i].loss == want[i].loss || std::isnan(want[i].loss)) << i;  // none in warm-up
    EXPECT_EQ(got[i].kl, want[i].kl) << i;
  }
  EXPECT_TRUE(std::filesystem::exists(*workshop_ / "saved/sparse"));
  for (const auto& entry : std::filesystem::directory_iterator(*workshop_ / "unsaved")) {
    const std::string name = entry.path().filename();
    EXPECT_TRUE(name == "log.jsonl" || name == "tensorboard") << name;
  }
}

TEST_F(Runs, MixturesAndAnswers) {
  DataBuildOptions chats;
  chats.tokenizer = *workshop_ / "tokenizer";
  chats.out = *workshop_ / "chats";
  chats.chat = true;
  chats.chat_format = "v3.1-plain";
  std::string lines;
  for (char c = 'a'; c <= 'z'; ++c) {
    lines += std::string(R"([{"role": "user", "content": "The letter?"}, )") +
             R"({"role": "assistant", "content": "It is )" + c + "\"}]\n";
  }
  workshop_->folder().write("chats.jsonl", lines);
  chats.inputs = {*workshop_ / "chats.jsonl"};
  build_data(chats, [](int64_t, int64_t) {});
  const std::vector<std::string> settings = {
      R"(data.train=[{shards = "data", weight = 2}, {task = "copy", words = 4}])",
      "stage.0.steps=3",
      "stage.1.steps=2",
      "stage.2.kind=sft",
      "stage.2.name=sft",
      "stage.2.steps=12",
      "stage.2.lr=1e-2",
      "stage.2.data=\"" + *workshop_ / "chats" + "\""};
  const std::vector<StepReport> r = run(recipe("mixed", settings));
  ASSERT_EQ(r.size(), 17U);
  EXPECT_FALSE(r[5].kl.empty()) << "with a top-k the indexer goes on learning";
  EXPECT_LT(mean_loss(r, 14, 17), r[5].loss - 1);
  for (const int64_t stop : {2, 6, 9}) run(recipe("mixed_parts", settings), stop);
  run(recipe("mixed_parts", settings));
  EXPECT_EQ(bytes(*workshop_ / "mixed/sft/model.safetensors"),
            bytes(*workshop_ / "mixed_parts/sft/model.safetensors"));
}

// A stage reaches past the positions that the model began with, and the next ones keep what it set.
TEST_F(Runs, YarnExtendsFromAStageOn) {
  const std::vector<std::string> settings = {
      "stage.0.steps=2", "stage.0.length=128", "stage.1.steps=2",      "stage.1.length=200",
      "stage.2.steps=2", "stage.2.length=256", "stage.1.rope_factor=2"};
  const std::vector<StepReport> r = run(recipe("yarn", settings));
  ASSERT_EQ(r.size(), 6U);
  const auto config = [&](const std::string& stage) {
    return ModelConfig::parse(bytes(*workshop_ / ("yarn/" + stage + "/config.json")), stage);
  };
  EXPECT_FALSE(config("pretrain").yarn);
  for (const char* stage : {"warmup", "sparse"}) {
    ASSERT_TRUE(config(stage).yarn) << stage;
    EXPECT_EQ(config(stage).yarn->factor, 2);
    EXPECT_EQ(config(stage).yarn->original_max_position, 128);
    EXPECT_EQ(config(stage).max_position, 256);
    EXPECT_NEAR(config(stage).softmax_scale() / config("pretrain").softmax_scale(),
                std::pow(1 + 0.1 * std::log(2.0), 2), 1e-6);
  }
  for (const int64_t stop : {1, 3, 5}) run(recipe("yarn_parts", settings), stop);
  run(recipe("yarn_parts", settings));
  EXPECT_EQ(bytes(*workshop_ / "yarn/sparse/model.safetensors"),
            bytes(*workshop_ / "yarn_parts/sparse/model.safetensors"));
  // It changes the computation, not only the configuration.
  std::vector<std::string> other = settings;
  other.back() = "stage.1.rope_factor=4";
  EXPECT_NE(run(recipe("yarn4", other))[4].loss, r[4].loss);
}

TEST_F(Runs, MultiTokenPredictionLearnsAndRuns) {
  std::string config = kConfig;
  const std::string key = "\"num_nextn_predict_layers\": ";
  config.replace(config.find(key), key.size() + 1, key + "1");
  workshop_->folder().write("mtp.json", config);
  const std::vector<std::string> settings = {"model.config=\"" + *workshop_ / "mtp.json" + "\"",
                                             "stage.0.mtp_weight=0.3",
                                             "stage.2.mtp_weight=0.1",
                                             "stage.0.steps=20",
                                             "stage.1.steps=3",
                                             "stage.2.steps=3"};
  const std::vector<StepReport> r = run(recipe("mtp", settings));
  EXPECT_NEAR(r[0].mtp_loss, std::log(8192), 0.5);
  EXPECT_LT(r[19].mtp_loss, r[0].mtp_loss - 0.5);
  EXPECT_EQ(r[21].mtp_loss, 0) << "a warm-up predicts nothing";
  EXPECT_EQ(r[21].kl.size(), 3U) << "and teaches the module's indexer";
  for (const int64_t stop : {7, 21, 24}) run(recipe("mtp_parts", settings), stop);
  run(recipe("mtp_parts", settings));
  EXPECT_EQ(bytes(*workshop_ / "mtp/sparse/model.safetensors"),
            bytes(*workshop_ / "mtp_parts/sparse/model.safetensors"));
  const Checkpoint model = Checkpoint::open(*workshop_ / "mtp/sparse");
  EXPECT_EQ(ModelConfig::parse(model.config_text(), "mtp").num_mtp_layers, 1);
  for (const char* name : {"eh_proj", "shared_head.norm", "embed_tokens", "shared_head.head"}) {
    EXPECT_NE(model.find(std::string("model.layers.2.") + name + ".weight"), nullptr) << name;
  }
  expect_refused({"stage.0.mtp_weight=0.3", "stage.2.mtp_weight=0.1"}, "num_nextn_predict_layers");
  expect_refused({"model.config=\"" + *workshop_ / "mtp.json" + "\"", "stage.0.mtp_weight=0.3"},
                 "to every stage");
  expect_refused({"stage.1.mtp_weight=0.3"}, "a warm-up has no loss");
}

// A factor that every step exceeds: the first ten set the mean, the rest is skipped, and too many
// in a row end the run. What a run remembers of norms goes on with it.
TEST_F(Runs, SpikesAreSkipped) {
  const std::vector<std::string> settings = {"run.spike_factor=1e-3", "run.max_skips=4",
                                             "stage.0.steps=30"};
  std::vector<StepReport> reports;
  const auto collect = [&](int64_t last_step) {
    KernelContext context(1);
    Trainer trainer(recipe("spikes", settings), context);
    trainer.run(last_step, [&](const StepReport& r) { reports.push_back(r); });
  };
  collect(12);
  ASSERT_EQ(reports.size(), 12U);
  for (size_t i = 0; i < 12; ++i) EXPECT_EQ(reports[i].skipped, i >= 10) << i;
  reports.clear();
  EXPECT_THROW(collect(30), DeviceError);
  ASSERT_EQ(reports.size(), 4U);
  for (const StepReport& r : reports) EXPECT_TRUE(r.skipped) << "the mean was forgotten";
  for (const StepReport& r : run(recipe("calm", {"run.spike_factor=100", "stage.0.steps=15",
                                                 "stage.1.steps=1", "stage.2.steps=1"}))) {
    EXPECT_FALSE(r.skipped);
  }
}

TEST_F(Runs, ADamagedCheckpointIsNamed) {
  const std::vector<std::string> short_run = {"stage.0.steps=3", "stage.1.steps=1"};
  run(recipe("damaged", short_run), 2);
  const std::string path = *workshop_ / "damaged/checkpoints/step-00000002.safetensors";
  ASSERT_TRUE(fs::exists(path));
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(fs::file_size(path)) - 5);
  file.put('x');
  file.close();
  try {
    run(recipe("damaged", short_run));
    ADD_FAILURE() << "a damaged checkpoint was read";
  } catch (const InputError& e) {
    EXPECT_NE(std::string(e.what()).find("step-00000002"), std::string::npos) << e.what();
  }
}

TEST_F(Runs, OtherRecipesAndOtherDataDoNotGoOn) {
  run(recipe("other", {"stage.0.steps=2"}), 1);
  KernelContext context(1);
  EXPECT_THROW(Trainer(recipe("other", {"stage.0.steps=2", "stage.0.lr=0.5"}), context),
               InputError);
}

TEST_F(Runs, TheFormsOfASparseStageAgree) {
  const std::vector<std::string> shorter = {"stage.0.steps=2", "stage.1.steps=2",
                                            "stage.2.steps=2"};
  const auto by = [&](const std::string& form) {
    std::vector<std::string> settings = shorter;
    settings.push_back("run.sparse_form=" + form);
    const Recipe r = recipe("form_" + form, settings);
    KernelContext context(1);
    EXPECT_NE(Trainer(r, context).stage_line(2).find(form == "mask" ? "masked tiles" : "gathered"),
              std::string::npos);
    return run(r);
  };
  const std::vector<StepReport> gathered = by("gather"), masked = by("mask");
  // The same weights until then, the same function of them: docs/numerics.md 7.
  EXPECT_EQ(masked[3].kl, gathered[3].kl);
  EXPECT_NEAR(masked[4].loss, gathered[4].loss, 1e-5);
  EXPECT_NEAR(kl_of(masked[4]), kl_of(gathered[4]), 1e-5 * kl_of(gathered[4]));
  EXPECT_NE(masked[4].loss, gathered[4].loss) << "both ran the same form";
}

TEST(SparseForm, DependsOnShapesAlone) {
  ModelConfig c;
  c.num_heads = 4, c.nope = 128, c.rope = 64, c.v_head = 128, c.kv_lora = 512;
  const auto faster = [&](int64_t length, int64_t topk) {
    Stage s;
    s.length = length;
    s.topk = topk;
    return masked_is_faster(c, s);
  };
  EXPECT_TRUE(faster(2048, 64));
  EXPECT_TRUE(faster(4096, 256));
  EXPECT_FALSE(faster(131072, 256));
  c.num_heads = 128;
  EXPECT_TRUE(faster(8192, 2048));
  EXPECT_FALSE(faster(131072, 2048));
}

TEST_F(Runs, RefusesWhatCannotWork) {
  expect_refused({"stage.1.kind=pretrain", "stage.1.name=more"}, "the indexer is fresh");
  expect_refused({"stage.2.topk=64"}, "topk: got 64");
  expect_refused({"stage.0.length=129"}, "max_position_embeddings");
  expect_refused({"stage.1.rope_factor=2", "stage.2.length=257"}, "max_position_embeddings 256");
  expect_refused({"stage.1.rope_original=64"}, "only together with rope_factor");
  expect_refused({"stage.0.topk=4"}, "only a sparse or an sft stage selects");
  expect_refused({"run.sparse_form=masked"}, "want auto, gather or mask");
  expect_refused({"stage.0.kind=stf"}, "want pretrain, warmup, sparse, dense or sft");
  expect_refused({"stage.0.kind=sft"}, "no answers are marked");
  expect_refused({R"(data.train=[{shards = "data", task = "copy"}])"}, "either shards or task");
  expect_refused({R"(data.train=[{shards = "data", answers = true}])"}, "no answers are marked");
  expect_refused({R"(data.train=[{task = "copy", answers = true}])"}, "answers: no such key");
  expect_refused({R"(data.train=[{task = "copi"}])"}, "want one of recall, needle");
  expect_refused({R"(data.train=[{task = "copy", hops = 3}])"}, "hops: no such key");
  expect_refused({R"(data.train=[{task = "needle", keys = 40}])"}, "have no room");
  expect_refused({R"(data.validation=[{task = "needle", keys = 40}])"}, "data.validation");
  expect_refused({"data.train=[]"}, "want a folder, or a list");
  expect_refused({"stage.0.stepz=4"}, "no such key");
  expect_refused({"stage.0.lr=-1"}, "got -1");
  expect_refused({"stage.0.steps=1.5"}, "of another type, want a whole number");
  expect_refused({"run.save=7"}, "run.save: of another type, want true or false");
  expect_refused({"data.train=\"" + *workshop_ / "nowhere" + "\""}, "tamis data build");
  const std::string other = *workshop_ / "other_tokenizer";
  fs::create_directories(other);
  workshop_->folder().write("other_tokenizer/tokenizer.json",
                            bytes(*workshop_ / "tokenizer/tokenizer.json") + "\n");
  expect_refused({"model.tokenizer=\"" + other + "\""}, "another tokenizer");
  std::string dense = kConfig;
  for (const char* key : {"index_topk", "index_n_heads", "index_head_dim"}) {
    const size_t at = dense.find(std::string("\"") + key);
    dense.erase(at, dense.find(',', at) + 1 - at);
  }
  dense.replace(dense.find("deepseek_v32"), 12, "deepseek_v3");
  workshop_->folder().write("dense.json", dense);
  expect_refused({"model.config=\"" + *workshop_ / "dense.json" + "\""}, "has no indexer");
}

}  // namespace
}  // namespace tamis
