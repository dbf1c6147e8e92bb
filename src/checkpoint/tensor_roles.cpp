#include "checkpoint/tensor_roles.h"

#include "base/error.h"

namespace tamis {
namespace {

using Part = TensorPlace::Part;
using Scope = TensorScope;
using Slice = TensorSlice;

// Columns: scope, name, name in the demo, slice, fp8, bits of integers.
// The integers keep the indexer higher: its scores choose what attention reads at all. int4 keeps
// the head higher too.
constexpr TensorRole kRoles[] = {
    {Scope::kModel, "model.embed_tokens.weight", "embed.weight", Slice::kRows, false, 0},
    {Scope::kModel, "model.norm.weight", "norm.weight", Slice::kWhole, false, 0},
    {Scope::kModel, "lm_head.weight", "head.weight", Slice::kRows, false, 8},

    {Scope::kLayer, "input_layernorm.weight", "attn_norm.weight", Slice::kWhole, false, 0},
    {Scope::kLayer, "post_attention_layernorm.weight", "ffn_norm.weight", Slice::kWhole, false, 0},

    {Scope::kLayer, "self_attn.q_a_proj.weight", "attn.wq_a.weight", Slice::kWhole, true, 4},
    {Scope::kLayer, "self_attn.q_a_layernorm.weight", "attn.q_norm.weight", Slice::kWhole, false,
     0},
    {Scope::kLayer, "self_attn.q_b_proj.weight", "attn.wq_b.weight", Slice::kRows, true, 4},
    {Scope::kLayer, "self_attn.q_proj.weight", "attn.wq.weight", Slice::kRows, true, 4},
    {Scope::kLayer, "self_attn.kv_a_proj_with_mqa.weight", "attn.wkv_a.weight", Slice::kWhole, true,
     4},
    {Scope::kLayer, "self_attn.kv_a_layernorm.weight", "attn.kv_norm.weight", Slice::kWhole, false,
     0},
    {Scope::kLayer, "self_attn.kv_b_proj.weight", "attn.wkv_b.weight", Slice::kRows, true, 4},
    {Scope::kLayer, "self_attn.o_proj.weight", "attn.wo.weight", Slice::kColumns, true, 4},

    {Scope::kLayer, "self_attn.indexer.wq_b.weight", "attn.indexer.wq_b.weight", Slice::kWhole,
     true, 0},
    {Scope::kLayer, "self_attn.indexer.wk.weight", "attn.indexer.wk.weight", Slice::kWhole, true,
     0},
    {Scope::kLayer, "self_attn.indexer.k_norm.weight", "attn.indexer.k_norm.weight", Slice::kWhole,
     false, 0},
    {Scope::kLayer, "self_attn.indexer.k_norm.bias", "attn.indexer.k_norm.bias", Slice::kWhole,
     false, 0},
    {Scope::kLayer, "self_attn.indexer.weights_proj.weight", "attn.indexer.weights_proj.weight",
     Slice::kWhole, false, 0},

    {Scope::kLayer, "mlp.gate_proj.weight", "ffn.w1.weight", Slice::kRows, true, 4},
    {Scope::kLayer, "mlp.up_proj.weight", "ffn.w3.weight", Slice::kRows, true, 4},
    {Scope::kLayer, "mlp.down_proj.weight", "ffn.w2.weight", Slice::kColumns, true, 4},

    {Scope::kLayer, "mlp.gate.weight", "ffn.gate.weight", Slice::kWhole, false, 0},
    {Scope::kLayer, "mlp.gate.e_score_correction_bias", "ffn.gate.bias", Slice::kWhole, false, 0},
    {Scope::kLayer, "mlp.shared_experts.gate_proj.weight", "ffn.shared_experts.w1.weight",
     Slice::kRows, true, 4},
    {Scope::kLayer, "mlp.shared_experts.up_proj.weight", "ffn.shared_experts.w3.weight",
     Slice::kRows, true, 4},
    {Scope::kLayer, "mlp.shared_experts.down_proj.weight", "ffn.shared_experts.w2.weight",
     Slice::kColumns, true, 4},
    {Scope::kExpert, "gate_proj.weight", "w1.weight", Slice::kByExpert, true, 4},
    {Scope::kExpert, "up_proj.weight", "w3.weight", Slice::kByExpert, true, 4},
    {Scope::kExpert, "down_proj.weight", "w2.weight", Slice::kByExpert, true, 4},

    // Of the multi-token-prediction layer alone.
    {Scope::kLayer, "enorm.weight", "", Slice::kWhole, false, 0},
    {Scope::kLayer, "hnorm.weight", "", Slice::kWhole, false, 0},
    {Scope::kLayer, "eh_proj.weight", "", Slice::kWhole, false, 0},
    {Scope::kLayer, "shared_head.norm.weight", "", Slice::kWhole, false, 0},
    {Scope::kLayer, "shared_head.head.weight", "", Slice::kRows, false, 0},
    {Scope::kLayer, "embed_tokens.weight", "", Slice::kRows, false, 0},
};

constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kFp8Suffix = ".weight_scale_inv";
constexpr std::string_view kIntSuffix = ".weight_scale";
constexpr std::string_view kDemoSuffix = ".scale";

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Takes "PREFIXdigits." off the front; false if it is not there. No leading zeros: "layers.01" is
// not another name of layer 1.
bool take_number(std::string_view prefix, std::string_view* name, int* number) {
  if (name->substr(0, prefix.size()) != prefix) return false;
  std::string_view rest = name->substr(prefix.size());
  size_t digits = 0;
  int value = 0;
  while (digits < rest.size() && digits < 9 && rest[digits] >= '0' && rest[digits] <= '9') {
    value = value * 10 + (rest[digits++] - '0');
  }
  if (digits == 0 || digits >= rest.size() || rest[digits] != '.') return false;
  if (digits > 1 && rest[0] == '0') return false;
  *number = value;
  *name = rest.substr(digits + 1);
  return true;
}

Scope take_prefix(bool demo, std::string_view* name, TensorPlace* place) {
  if (!take_number(demo ? "layers." : "model.layers.", name, &place->layer)) return Scope::kModel;
  return take_number(demo ? "ffn.experts." : "mlp.experts.", name, &place->expert) ? Scope::kExpert
                                                                                   : Scope::kLayer;
}

// The name of the weight whose scales `name` is; unchanged if it is no scale.
std::string weight_name(bool demo, std::string_view name, Part* part) {
  const auto base = [name](std::string_view suffix) {
    return std::string(name.substr(0, name.size() - suffix.size())) + std::string(kWeight);
  };
  *part = Part::kTensor;
  if (demo ? ends_with(name, kDemoSuffix) : ends_with(name, kFp8Suffix)) {
    *part = Part::kFp8Scale;
    return base(demo ? kDemoSuffix : kFp8Suffix);
  }
  if (!demo && ends_with(name, kIntSuffix)) {
    *part = Part::kIntScale;
    return base(kIntSuffix);
  }
  return std::string(name);
}

const TensorRole* find_role(bool demo, std::string_view name, TensorPlace* place) {
  TensorPlace found;
  const Scope scope = take_prefix(demo, &name, &found);
  const std::string wanted = weight_name(demo, name, &found.part);
  for (const TensorRole& role : kRoles) {
    const std::string_view own = demo ? role.demo_name : role.name;
    if (role.scope != scope || own.empty() || own != wanted) continue;
    if (found.part == Part::kFp8Scale && !role.to_fp8) return nullptr;
    if (found.part == Part::kIntScale && !role.to_int8()) return nullptr;
    if (place != nullptr) *place = found;
    return &role;
  }
  return nullptr;
}

std::string prefix_of(bool demo, Scope scope, const TensorPlace& place) {
  if (scope == Scope::kModel) return "";
  std::string prefix = (demo ? "layers." : "model.layers.") + std::to_string(place.layer) + ".";
  if (scope == Scope::kExpert) {
    prefix += (demo ? "ffn.experts." : "mlp.experts.") + std::to_string(place.expert) + ".";
  }
  return prefix;
}

std::string with_suffix(std::string name, std::string_view suffix) {
  return name.substr(0, name.size() - kWeight.size()) + std::string(suffix);
}

}  // namespace

std::span<const TensorRole> tensor_roles() { return kRoles; }

const TensorRole* role_of(std::string_view name, TensorPlace* place) {
  return find_role(false, name, place);
}

const TensorRole* demo_role_of(std::string_view name, TensorPlace* place) {
  return find_role(true, name, place);
}

std::string name_of(const TensorRole& role, const TensorPlace& place) {
  std::string name = prefix_of(false, role.scope, place) + std::string(role.name);
  if (place.part == Part::kFp8Scale) return with_suffix(std::move(name), kFp8Suffix);
  if (place.part == Part::kIntScale) return with_suffix(std::move(name), kIntSuffix);
  return name;
}

std::string demo_name_of(const TensorRole& role, const TensorPlace& place) {
  if (role.demo_name.empty() || place.part == Part::kIntScale) {
    throw UsageError("tensor " + name_of(role, place) + " has no name in the demo's layout");
  }
  std::string name = prefix_of(true, role.scope, place) + std::string(role.demo_name);
  return place.part == Part::kFp8Scale ? with_suffix(std::move(name), kDemoSuffix) : name;
}

}  // namespace tamis
