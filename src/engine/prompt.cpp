#include "engine/prompt.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "text/encode_pieces.h"

namespace tamis {
namespace {

constexpr int64_t kMaxConfigBytes = 1 << 20;

float number_or(const Json& json, const std::string& where, const char* key, float fallback) {
  if (!json.contains(key) || json[key].is_null()) return fallback;
  if (!json[key].is_number()) throw InputError(where + ": " + key + ": want a number");
  return json[key].get<float>();
}

std::vector<int64_t> ids_of(const Json& value, const std::string& where, int64_t vocab) {
  std::vector<int64_t> ids;
  const Json list = value.is_array() ? value : Json::array({value});
  for (const Json& v : list) {
    if (!v.is_number_integer() || v < 0 || v >= vocab) {
      throw InputError(where + ": eos_token_id: want ids below " + std::to_string(vocab));
    }
    ids.push_back(v.get<int64_t>());
  }
  return ids;
}

}  // namespace

std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const ModelConfig& config,
                                   std::string_view text, bool add_bos) {
  std::vector<int32_t> ids = tokenizer.encode(text, SpecialTokens::kParse);
  if (add_bos && config.bos_id >= 0 && (ids.empty() || ids.front() != config.bos_id)) {
    ids.insert(ids.begin(), static_cast<int32_t>(config.bos_id));
  }
  return ids;
}

std::vector<int32_t> encode_chat(const Tokenizer& tokenizer,
                                 const std::vector<PromptPiece>& pieces) {
  return encode_pieces(tokenizer, pieces);
}

GenerationDefaults read_generation_defaults(const Checkpoint& checkpoint,
                                            const ModelConfig& config) {
  GenerationDefaults d;
  d.eos_ids = config.eos_ids;
  const std::string path = checkpoint.folder() + "/generation_config.json";
  if (!std::filesystem::exists(path)) return d;
  const Json json = parse_json(read_text_file(path, kMaxConfigBytes), path);
  if (!json.is_object()) throw InputError(path + ": want a JSON object");
  if (json.contains("eos_token_id") && !json["eos_token_id"].is_null()) {
    d.eos_ids = ids_of(json["eos_token_id"], path, config.vocab_size);
  }
  if (json.value("do_sample", Json(false)) == true) {
    d.sampling.temperature = number_or(json, path, "temperature", 1);
    d.sampling.top_p = number_or(json, path, "top_p", 1);
    d.sampling.top_k = static_cast<int64_t>(number_or(json, path, "top_k", 0));
  }
  return d;
}

}  // namespace tamis
