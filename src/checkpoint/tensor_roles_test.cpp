#include "checkpoint/tensor_roles.h"

#include <gtest/gtest.h>

#include <set>

#include "base/error.h"

namespace tamis {
namespace {

TEST(TensorRoles, EveryRowIsFoundUnderBothOfItsNames) {
  for (const TensorRole& role : tensor_roles()) {
    TensorPlace place;
    if (role.scope != TensorScope::kModel) place.layer = 60;
    if (role.scope == TensorScope::kExpert) place.expert = 255;
    for (const auto part :
         {TensorPlace::Part::kTensor, TensorPlace::Part::kFp8Scale, TensorPlace::Part::kIntScale}) {
      place.part = part;
      if (part == TensorPlace::Part::kFp8Scale && !role.to_fp8) continue;
      if (part == TensorPlace::Part::kIntScale && !role.to_int8()) continue;
      TensorPlace found;
      EXPECT_EQ(role_of(name_of(role, place), &found), &role) << name_of(role, place);
      EXPECT_EQ(found.layer, place.layer);
      EXPECT_EQ(found.expert, place.expert);
      EXPECT_EQ(found.part, part);
      if (role.demo_name.empty() || part == TensorPlace::Part::kIntScale) {
        EXPECT_THROW(demo_name_of(role, place), UsageError);
        continue;
      }
      EXPECT_EQ(demo_role_of(demo_name_of(role, place), &found), &role);
      EXPECT_EQ(found.layer, place.layer);
      EXPECT_EQ(found.expert, place.expert);
      EXPECT_EQ(found.part, part);
    }
  }
}

TEST(TensorRoles, NamesAreUnique) {
  std::set<std::string> names, demo_names;
  for (const TensorRole& role : tensor_roles()) {
    const std::string scope = std::to_string(static_cast<int>(role.scope)) + " ";
    EXPECT_TRUE(names.insert(scope + std::string(role.name)).second) << role.name;
    if (role.demo_name.empty()) continue;
    EXPECT_TRUE(demo_names.insert(scope + std::string(role.demo_name)).second) << role.demo_name;
  }
}

TEST(TensorRoles, SpotChecks) {
  TensorPlace place;
  const TensorRole* role = role_of("model.layers.3.mlp.experts.7.up_proj.weight_scale_inv", &place);
  ASSERT_NE(role, nullptr);
  EXPECT_EQ(demo_name_of(*role, place), "layers.3.ffn.experts.7.w3.scale");
  EXPECT_EQ(role->slice, TensorSlice::kByExpert);
  role = role_of("model.layers.0.self_attn.o_proj.weight", &place);
  EXPECT_EQ(role->slice, TensorSlice::kColumns);
  role = role_of("model.layers.0.mlp.gate.e_score_correction_bias", &place);
  EXPECT_EQ(demo_name_of(*role, place), "layers.0.ffn.gate.bias");
}

// FP8 as the release, the integers without the indexer.
TEST(TensorRoles, FormatsOfTheRelease) {
  std::set<std::string_view> only_fp8;
  for (const TensorRole& role : tensor_roles()) {
    EXPECT_FALSE(role.to_int4() && !role.to_fp8) << role.name;
    if (role.to_fp8 && !role.to_int8()) only_fp8.insert(role.name);
  }
  EXPECT_EQ(only_fp8, (std::set<std::string_view>{"self_attn.indexer.wq_b.weight",
                                                  "self_attn.indexer.wk.weight"}));
  for (const char* name :
       {"model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.gate.weight",
        "model.layers.1.self_attn.indexer.weights_proj.weight", "model.layers.61.eh_proj.weight"}) {
    ASSERT_NE(role_of(name), nullptr) << name;
    EXPECT_FALSE(role_of(name)->to_fp8) << name;
  }
}

TEST(TensorRoles, StrangeNamesHaveNoRole) {
  for (const char* name :
       {"", ".", "model", "model.layers.", "model.layers.0", "model.layers.0.",
        "model.layers.01.input_layernorm.weight", "model.layers.-1.input_layernorm.weight",
        "model.layers.99999999999999999999.input_layernorm.weight", "input_layernorm.weight",
        "model.layers.0.model.norm.weight", "model.layers.0.input_layernorm.weight_scale_inv",
        "model.layers.0.self_attn.indexer.wk.weight_scale", "model.norm.weight.",
        "model.layers.0.mlp.experts.x.up_proj.weight", "weight_scale_inv", ".weight_scale"}) {
    EXPECT_EQ(role_of(name), nullptr) << name;
  }
  EXPECT_EQ(demo_role_of("model.norm.weight"), nullptr);
  EXPECT_EQ(demo_role_of("layers.0."), nullptr);
  EXPECT_EQ(demo_role_of(""), nullptr);
}

}  // namespace
}  // namespace tamis
