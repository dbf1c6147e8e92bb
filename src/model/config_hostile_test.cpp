// LD-16 of the catalogue of loader failures: what a config.json from outside may make of a model.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "model/config.h"

namespace tamis {
namespace {

// The values of the DeepSeek-V3.2-Exp release that a config needs.
Json release() {
  return parse_json(
      read_text_file(std::string(TAMIS_SOURCE_DIR) + "/fuzz/corpus/config/v32_release", 1 << 20),
      "release");
}

std::string error_of(const Json& config) {
  try {
    ModelConfig::parse(config.dump(), "config.json");
  } catch (const InputError& e) {
    return e.what();
  }
  return "accepted";
}

// The error of the release with one key set to a value.
std::string error_with(const char* key, const Json& value) {
  Json config = release();
  config[key] = value;
  return error_of(config);
}

TEST(HostileConfig, TheReleaseIsAccepted) {
  const ModelConfig c = ModelConfig::parse(release().dump(), "config.json");
  EXPECT_EQ(c.num_layers(), 61);
  EXPECT_EQ(c.layers[2].ffn, FfnKind::kDense);
  EXPECT_EQ(c.layers[3].ffn, FfnKind::kMoe);
  EXPECT_EQ(c.num_mtp_layers, 1);
  EXPECT_TRUE(c.ue8m0_scales);
}

TEST(HostileConfig, Ld16CodeIsIgnored) {
  Json config = release();
  config["auto_map"] = {{"AutoModel", "evil--x.py"}};
  EXPECT_EQ(error_of(config), "accepted");
}

TEST(HostileConfig, Ld16OutOfRangeIsRefusedByName) {
  for (const Json& value : {Json(-1), Json(1e308), Json("61"), Json(int64_t{1} << 31), Json(0),
                            Json(61.5), Json(UINT64_MAX), Json::array(), Json(true)}) {
    const std::string message = error_with("num_hidden_layers", value);
    EXPECT_EQ(message.rfind("config.json: num_hidden_layers: ", 0), 0u) << value << message;
  }
  EXPECT_EQ(error_with("n_routed_experts", 0).rfind("config.json: n_routed_experts: got 0", 0), 0u);
  EXPECT_EQ(error_with("index_topk", 163841).rfind("config.json: index_topk: exceeds", 0), 0u);
}

// Every number of the config, pushed to values that no model has: refused with the key's name, or
// accepted because the value is not used. Nothing else may be thrown.
TEST(HostileConfig, EveryKeyWithEveryBadValue) {
  const Json config = release();
  const Json bad[] = {Json(),           Json(-1),
                      Json(0),          Json(INT64_MAX),
                      Json(UINT64_MAX), Json(INT64_MIN),
                      Json(1e308),      Json(-1e308),
                      Json(0.5),        Json("1"),
                      Json(true),       Json::array(),
                      Json::object(),   Json::array({-1, 1e308})};
  for (const auto& [key, old] : config.items()) {
    for (const Json& value : bad) {
      const std::string message = error_with(key.c_str(), value);
      if (message == "accepted") continue;
      EXPECT_EQ(message.rfind("config.json: ", 0), 0u) << key << " " << value << ": " << message;
      EXPECT_LT(message.size(), 300u) << message;
    }
    // Some keys have a default; where one is missed, another key may be the one that does not fit.
    Json missing = config;
    missing.erase(key);
    const std::string message = error_of(missing);
    if (message == "accepted") continue;
    EXPECT_EQ(message.rfind("config.json: ", 0), 0u) << key << ": " << message;
  }
}

TEST(HostileConfig, SizesThatOnlyTogetherAreTooLarge) {
  Json config = release();
  config["hidden_size"] = 1 << 24;
  config["moe_intermediate_size"] = 1 << 24;
  config["n_routed_experts"] = 65536;  // the product is 2^64
  EXPECT_NE(error_of(config).find("n_routed_experts: makes a tensor of more than 2^47 elements"),
            std::string::npos)
      << error_of(config);
  config = release();
  config["max_position_embeddings"] = 1 << 30;
  config["num_hidden_layers"] = 4096;
  EXPECT_NE(error_of(config).find("max_position_embeddings: makes"), std::string::npos)
      << error_of(config);
}

TEST(HostileConfig, IndexerThatIsNotThereIsNoDenseModel) {
  Json config = release();
  config.erase("index_topk");
  EXPECT_EQ(error_of(config), "config.json: index_topk: missing");
}

TEST(HostileConfig, Malformed) {
  for (const char* text : {"", "[]", "null", "{", "{\"model_type\":1}", "{}",
                           "{\"model_type\":\"a\",\"model_type\":\"a\"}"}) {
    EXPECT_THROW(ModelConfig::parse(text, "config.json"), InputError) << text;
  }
  EXPECT_THROW(ModelConfig::parse(std::string(100000, '['), "config.json"), InputError);
  EXPECT_NE(error_with("model_type", "deepseek_v4").find("want deepseek_v3, deepseek_v32"),
            std::string::npos);
}

}  // namespace
}  // namespace tamis
