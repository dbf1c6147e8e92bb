// The demo's per-rank layout, both ways, against a description of it that shares no code with the
// converter.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/convert.h"
#include "checkpoint/safetensors.h"
#include "convert/folders.h"

namespace tamis {
namespace {

using namespace convert_test;  // NOLINT(google-build-using-namespace): this file's own helpers

enum class Cut { kNone, kAxis0, kAxis1, kExpert };

struct Expected {
  std::string name;
  Cut cut = Cut::kNone;
  int layer = -1, expert = -1;
};

std::vector<std::string> split(const std::string& name) {
  std::vector<std::string> parts;
  std::istringstream in(name);
  for (std::string part; std::getline(in, part, '.');) parts.push_back(part);
  return parts;
}

// Word by word, as the published table describes it.
Expected describe(const std::string& name) {
  static const std::map<std::string, std::pair<std::string, Cut>> kWords = {
      {"self_attn", {"attn", Cut::kNone}},
      {"mlp", {"ffn", Cut::kNone}},
      {"weight_scale_inv", {"scale", Cut::kNone}},
      {"e_score_correction_bias", {"bias", Cut::kNone}},
      {"embed_tokens", {"embed", Cut::kAxis0}},
      {"lm_head", {"head", Cut::kAxis0}},
      {"input_layernorm", {"attn_norm", Cut::kNone}},
      {"post_attention_layernorm", {"ffn_norm", Cut::kNone}},
      {"q_a_proj", {"wq_a", Cut::kNone}},
      {"q_a_layernorm", {"q_norm", Cut::kNone}},
      {"kv_a_proj_with_mqa", {"wkv_a", Cut::kNone}},
      {"kv_a_layernorm", {"kv_norm", Cut::kNone}},
      {"q_b_proj", {"wq_b", Cut::kAxis0}},
      {"kv_b_proj", {"wkv_b", Cut::kAxis0}},
      {"o_proj", {"wo", Cut::kAxis1}},
      {"gate_proj", {"w1", Cut::kAxis0}},
      {"up_proj", {"w3", Cut::kAxis0}},
      {"down_proj", {"w2", Cut::kAxis1}},
  };
  Expected expected;
  const std::vector<std::string> parts = split(name);
  for (size_t i = parts[0] == "model" ? 1 : 0; i < parts.size(); ++i) {
    std::string word = parts[i];
    if (const auto it = kWords.find(word); it != kWords.end()) {
      word = it->second.first;
      if (it->second.second != Cut::kNone) expected.cut = it->second.second;
    }
    if (i > 0 && parts[i - 1] == "layers") expected.layer = std::stoi(word);
    if (i > 0 && parts[i - 1] == "experts") expected.expert = std::stoi(word);
    expected.name += (expected.name.empty() ? "" : ".") + word;
  }
  if (expected.expert >= 0) expected.cut = Cut::kExpert;
  return expected;
}

// Part `rank` of `ranks` of a matrix along an axis, element by element.
std::string slice(const Tensor& t, Cut cut, int64_t rank, int64_t ranks) {
  if (cut == Cut::kNone || cut == Cut::kExpert) return bytes_of(t);
  const int64_t rows = t.shape[0], cols = t.shape[1], size = dtype_bits(t.dtype) / 8;
  const std::string all = bytes_of(t);
  std::string part;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const bool mine =
          cut == Cut::kAxis0 ? r / (rows / ranks) == rank : c / (cols / ranks) == rank;
      if (mine)
        part += all.substr(static_cast<size_t>((r * cols + c) * size), static_cast<size_t>(size));
    }
  }
  return part;
}

Json config_of(const std::string& folder) {
  return parse_json(read_file(folder + "/config.json"), folder);
}

ConvertOptions options_for(const std::string& in, const std::string& out, int ranks) {
  ConvertOptions options;
  options.in = in;
  options.out = out;
  options.model_parallel = ranks;
  options.threads = 1;
  return options;
}

void expect_ranks_hold(const std::string& model, const std::string& folder, int ranks) {
  const Checkpoint checkpoint = Checkpoint::open(model);
  const Json config = config_of(model);
  const int experts = config["n_routed_experts"];
  for (int rank = 0; rank < ranks; ++rank) {
    const SafetensorsFile file(folder + "/model" + std::to_string(rank) + "-mp" +
                               std::to_string(ranks) + ".safetensors");
    size_t expected_tensors = 0;
    for (const Checkpoint::Entry& entry : checkpoint.entries()) {
      const Expected expected = describe(entry.info->name);
      if (expected.layer >= config["num_hidden_layers"]) continue;
      if (expected.cut == Cut::kExpert && expected.expert / (experts / ranks) != rank) continue;
      ++expected_tensors;
      const TensorInfo* info = file.find(expected.name);
      ASSERT_NE(info, nullptr) << expected.name << " in " << file.path();
      EXPECT_EQ(info->dtype, entry.info->dtype) << expected.name;
      const Tensor whole = checkpoint.tensor(entry.info->name);
      ASSERT_TRUE(bytes_of(file.tensor(*info)) == slice(whole, expected.cut, rank, ranks))
          << expected.name << " of rank " << rank << "/" << ranks;
    }
    EXPECT_EQ(file.header().tensors.size(), expected_tensors);
  }
}

void expect_same_tensors(const std::string& model, const std::string& again) {
  const Checkpoint want = Checkpoint::open(model), found = Checkpoint::open(again);
  const int layers = config_of(model)["num_hidden_layers"];
  size_t expected_tensors = 0;
  for (const Checkpoint::Entry& entry : want.entries()) {
    if (describe(entry.info->name).layer >= layers) continue;
    ++expected_tensors;
    const TensorInfo* info = found.find(entry.info->name);
    ASSERT_NE(info, nullptr) << entry.info->name;
    EXPECT_EQ(info->dtype, entry.info->dtype) << entry.info->name;
    EXPECT_TRUE(info->shape == entry.info->shape) << entry.info->name;
    EXPECT_TRUE(bytes_of(found.tensor(info->name)) == bytes_of(want.tensor(info->name)))
        << info->name;
  }
  EXPECT_EQ(found.entries().size(), expected_tensors);
}

std::string input_error(const ConvertOptions& options) {
  try {
    convert(options);
  } catch (const InputError& e) {
    return e.what();
  }
  return "no InputError";
}

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(ConvertLayout, RanksHoldTheirSlicesAndJoinAgain) {
  int converted = 0;
  for (const std::string& model : models()) {
    for (const int ranks : {1, 2, 4}) {
      SCOPED_TRACE(model + " for " + std::to_string(ranks));
      const TemporaryFolder folder;
      const std::string cut = folder.path("cut"), again = folder.path("again");
      try {
        convert(options_for(model, cut, ranks));
      } catch (const InputError& e) {
        // Only where FP8 blocks forbid it; see CutsOfFp8BlocksAreRefused.
        EXPECT_TRUE(has(e.what(), "FP8 block") || has(e.what(), "do not divide")) << e.what();
        EXPECT_TRUE(has(model, "fp8")) << e.what();
        continue;
      }
      expect_ranks_hold(model, cut, ranks);
      convert(options_for(cut, again, 0));
      expect_same_tensors(model, again);
      EXPECT_EQ(read_file(again + "/config.json"), read_file(model + "/config.json"));
      EXPECT_TRUE(fs::exists(again + "/model.safetensors.index.json"));
      ++converted;
    }
  }
  EXPECT_GE(converted, 3);
}

TEST(ConvertLayout, TokenizerFilesGoAlong) {
  const TemporaryFolder folder;
  const std::string cut = folder.path("cut"), again = folder.path("again");
  convert(options_for(mini(), cut, 2));
  convert(options_for(cut, again, 0));
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    EXPECT_EQ(read_file(cut + "/" + name), read_file(mini() + "/" + name)) << name;
    EXPECT_EQ(read_file(again + "/" + name), read_file(mini() + "/" + name)) << name;
  }
}

TEST(ConvertLayout, MessageNamesWhatDoesNotDivideAndWhatWould) {
  const TemporaryFolder folder;
  const std::string three = input_error(options_for(mini(), folder.path("out"), 3));
  EXPECT_TRUE(has(three, "attention heads (4) do not divide by 3")) << three;
  EXPECT_TRUE(has(three, "can be cut for 1, 2, 4")) << three;
  EXPECT_FALSE(fs::exists(folder.path("out")));
}

TEST(ConvertLayout, CutsOfFp8BlocksAreRefused) {
  const char* fixtures = std::getenv("TAMIS_FIXTURES");
  if (fixtures == nullptr) GTEST_SKIP() << "TAMIS_FIXTURES is not set";
  const TemporaryFolder folder;
  const std::string message =
      input_error(options_for(std::string(fixtures) + "/d_fp8", folder.path("out"), 2));
  EXPECT_TRUE(has(message, "shared_experts")) << message;
  EXPECT_TRUE(has(message, "FP8 block of 128")) << message;
  EXPECT_TRUE(has(message, "can be cut for 1")) << message;
}

TEST(ConvertLayout, MissingAndForeignRanksAreRefused) {
  const TemporaryFolder folder;
  const std::string cut = folder.path("cut");
  convert(options_for(mini(), cut, 2));
  const std::string second = cut + "/model1-mp2.safetensors";
  const std::string bytes = read_file(second);

  fs::remove(second);
  std::string message = input_error(options_for(cut, folder.path("out"), 0));
  EXPECT_TRUE(has(message, "model1-mp2.safetensors is missing")) << message;

  // A norm that differs between ranks: the files are of two saves.
  std::string other = bytes;
  const SafetensorsFile first(cut + "/model0-mp2.safetensors");
  write_file(second, bytes);
  {
    const SafetensorsFile file(second);
    const TensorInfo* norm = file.find("norm.weight");
    ASSERT_NE(norm, nullptr);
    other[static_cast<size_t>(file.header().header_bytes + norm->offset)] ^= 1;
  }
  write_file(second, other);
  message = input_error(options_for(cut, folder.path("out"), 0));
  EXPECT_TRUE(has(message, "differs from rank 0's")) << message;

  write_file(second, bytes);
  write_file(cut + "/model0-mp4.safetensors", bytes);
  message = input_error(options_for(cut, folder.path("out"), 0));
  EXPECT_TRUE(has(message, "ranks")) << message;
}

TEST(ConvertLayout, OneMissingExpertIsRefused) {
  const TemporaryFolder folder;
  const std::string cut = folder.path("cut");
  convert(options_for(mini(), cut, 1));
  const std::string path = cut + "/model0-mp1.safetensors";
  const std::string copy = folder.path("whole.safetensors");
  fs::rename(path, copy);
  {
    const SafetensorsFile whole(copy);
    std::vector<TensorSpec> specs;
    for (const TensorInfo& info : whole.header().tensors) {
      if (info.name == "layers.2.ffn.experts.5.w3.weight") continue;
      specs.push_back({info.name, info.dtype, info.shape});
    }
    SafetensorsWriter out(path, specs);
    for (const TensorSpec& spec : specs) {
      const Tensor t = whole.tensor(*whole.find(spec.name));
      out.append_tensor(spec.name, {t.data, static_cast<size_t>(t.bytes())});
    }
    out.commit();
  }
  const std::string message = input_error(options_for(cut, folder.path("out"), 0));
  EXPECT_TRUE(has(message, "15 tensors like")) << message;
  EXPECT_TRUE(has(message, "up_proj")) << message;
}

TEST(ConvertLayout, UnknownTensorsAreRefusedOrKept) {
  const TemporaryFolder folder;
  const std::string model = folder.path("model"), cut = folder.path("cut");
  fs::create_directory(model);
  for (const auto& entry : fs::directory_iterator(mini())) {
    if (entry.path().extension() == ".safetensors" || entry.path().stem().extension() == ".index")
      continue;
    if (entry.path().filename() == "model.safetensors.index.json") continue;
    fs::copy(entry.path(), model + "/" + entry.path().filename().string());
  }
  {
    const Checkpoint whole = Checkpoint::open(mini());
    std::vector<TensorSpec> specs = {{"model.layers.0.strange.weight", DType::kU8, {3}}};
    for (const auto& e : whole.entries()) {
      specs.push_back({e.info->name, e.info->dtype, e.info->shape});
    }
    SafetensorsWriter out(model + "/model.safetensors", specs);
    out.append(std::as_bytes(std::span("abc", 3)));
    for (size_t i = 1; i < specs.size(); ++i) {
      const Tensor t = whole.tensor(specs[i].name);
      out.append({t.data, static_cast<size_t>(t.bytes())});
    }
    out.commit();
  }
  ConvertOptions options = options_for(model, cut, 2);
  const std::string message = input_error(options);
  EXPECT_TRUE(has(message, "model.layers.0.strange.weight")) << message;
  EXPECT_TRUE(has(message, "--keep-unknown")) << message;

  std::vector<std::string> notes;
  options.keep_unknown = true;
  options.note = [&notes](const std::string& note) { notes.push_back(note); };
  convert(options);
  ASSERT_EQ(notes.size(), 1u);
  ConvertOptions back = options_for(cut, folder.path("again"), 0);
  back.keep_unknown = true;
  convert(back);
  const Checkpoint again = Checkpoint::open(folder.path("again"));
  EXPECT_EQ(bytes_of(again.tensor("model.layers.0.strange.weight")), "abc");
}

TEST(ConvertLayout, TheOutputFolderIsOursAlone) {
  const TemporaryFolder folder;
  const std::string out = folder.path("out");
  fs::create_directory(out);
  write_file(out + "/notes.txt", "mine");
  std::string message = input_error(options_for(mini(), out, 2));
  EXPECT_TRUE(has(message, "notes.txt")) << message;
  ConvertOptions options = options_for(mini(), out, 2);
  options.force = true;
  convert(options);
  EXPECT_EQ(read_file(out + "/notes.txt"), "mine");

  // The same command again finds everything done; another one is refused.
  options.force = false;
  EXPECT_EQ(convert(options).files_resumed, 2);
  options.model_parallel = 4;
  message = input_error(options);
  EXPECT_TRUE(has(message, "another conversion")) << message;
  options.force = true;
  EXPECT_EQ(convert(options).files_resumed, 0);
  EXPECT_FALSE(fs::exists(out + "/model0-mp2.safetensors"));

  EXPECT_THROW(convert(options_for(mini(), mini(), 2)), UsageError);
}

TEST(ConvertLayout, AbsurdRequestsAreUsageErrors) {
  const TemporaryFolder folder;
  EXPECT_THROW(convert(options_for(mini(), folder.path("out"), -1)), UsageError);
  EXPECT_THROW(convert(options_for(mini(), folder.path("out"), 5000)), UsageError);
  EXPECT_THROW(convert(options_for(mini(), folder.path("out"), 0)), UsageError);
  ConvertOptions both = options_for(mini(), folder.path("out"), 2);
  both.to = NumberFormat::kFp8;
  EXPECT_THROW(convert(both), UsageError);
}

}  // namespace
}  // namespace tamis
