// The tensors of a checkpoint of this family: one row a kind, with its names, how a rank slices it
// and which narrow formats it may take. Load, convert and quantise walk this table.
//
//   TensorPlace place;
//   const TensorRole* role = role_of("model.layers.3.mlp.experts.7.up_proj.weight", &place);
//   // place.layer 3, place.expert 7, role->slice kByExpert
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace tamis {

enum class TensorScope {
  kModel,   // once
  kLayer,   // once a layer: model.layers.N.
  kExpert,  // once a routed expert: model.layers.N.mlp.experts.E.
};

// How N ranks share a tensor in the demo's layout. Part i of equal parts goes to rank i.
enum class TensorSlice {
  kWhole,     // every rank has all of it
  kRows,      // along axis 0
  kColumns,   // along axis 1
  kByExpert,  // not cut: rank i has the experts i*E/N .. (i+1)*E/N - 1
};

struct TensorRole {
  TensorScope scope;
  std::string_view name;       // after the prefix of the scope: "self_attn.q_a_proj.weight"
  std::string_view demo_name;  // likewise in the demo: "attn.wq_a.weight"; empty: left out there
  TensorSlice slice;
  bool to_fp8;   // may be stored as F8_E4M3 with one scale a block of 128x128
  int int_bits;  // fewest bits of integers with one scale per 32 columns: 4 (or 8), 8, 0: none

  bool to_int8() const { return int_bits != 0; }
  bool to_int4() const { return int_bits == 4; }
};

// What a name says beyond its kind.
struct TensorPlace {
  enum class Part {
    kTensor,
    kFp8Scale,  // NAME_scale_inv; "scale" instead of "weight" in the demo
    kIntScale,  // NAME_scale
  };
  int layer = -1;   // of kLayer and kExpert
  int expert = -1;  // of kExpert
  Part part = Part::kTensor;
};

std::span<const TensorRole> tensor_roles();

// The kind of a Hugging Face name, null if it is not one of the table. `place` may be null.
const TensorRole* role_of(std::string_view name, TensorPlace* place = nullptr);
// The same for a name of the demo's per-rank files.
const TensorRole* demo_role_of(std::string_view name, TensorPlace* place = nullptr);

// The names of a tensor, or of its scales. demo_name_of: UsageError for a role that the demo does
// not have, and for kIntScale.
std::string name_of(const TensorRole& role, const TensorPlace& place);
std::string demo_name_of(const TensorRole& role, const TensorPlace& place);

}  // namespace tamis
