// The layout that DeepSeek's inference demo reads: model{rank}-mp{N}.safetensors, one file a rank,
// with the demo's names. docs/formats/per-rank.md describes it.
#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/convert_plan.h"

namespace tamis {
namespace {

constexpr int kMaxRanks = 1024;

std::string quote(std::string_view text) { return "\"" + printable(text) + "\""; }

int64_t config_number(const Json& config, const std::string& folder, const char* key,
                      int64_t if_absent) {
  const auto it = config.find(key);
  if (it == config.end() || it->is_null()) {
    if (if_absent >= 0) return if_absent;
    throw InputError(folder + "/config.json: no " + key);
  }
  if (!it->is_number_integer() || it->get<double>() < 1 || it->get<double>() > 1e6) {
    throw InputError(folder + "/config.json: " + key + " is not a number from 1 to 1000000");
  }
  return it->get<int64_t>();
}

struct Dimensions {
  int64_t layers, heads, experts;
};

Dimensions read_dimensions(const ConvertSource& source) {
  const Json config = parse_json(source.config_text, source.folder + "/config.json");
  if (!config.is_object()) throw InputError(source.folder + "/config.json: not an object");
  return {config_number(config, source.folder, "num_hidden_layers", -1),
          config_number(config, source.folder, "num_attention_heads", -1),
          config_number(config, source.folder, "n_routed_experts", 0)};
}

// Something that N has to divide.
struct Divisor {
  std::string what;
  int64_t value = 0;
  bool fp8 = false;  // a part has to end on a block edge as well

  bool allows(int64_t parts) const {
    return parts == 1 || value % (fp8 ? parts * kFp8Block : parts) == 0;
  }
};

bool all_allow(const std::vector<Divisor>& divisors, int64_t parts) {
  return std::all_of(divisors.begin(), divisors.end(),
                     [parts](const Divisor& d) { return d.allows(parts); });
}

// InputError if `parts` does not work, naming what is in its way and which numbers would do.
void check_divisors(const std::vector<Divisor>& divisors, const std::string& folder, int parts) {
  const auto bad = std::find_if(divisors.begin(), divisors.end(),
                                [parts](const Divisor& d) { return !d.allows(parts); });
  if (bad == divisors.end()) return;
  std::string message = folder + ": cannot be cut for " + std::to_string(parts) + " ranks: ";
  if (bad->value % parts != 0) {
    message += bad->what + " (" + std::to_string(bad->value) + ") do not divide by " +
               std::to_string(parts);
  } else {
    message += bad->what + " (" + std::to_string(bad->value) + ") in parts of " +
               std::to_string(bad->value / parts) + " would cut an FP8 block of 128";
  }
  message += "; it can be cut for ";
  std::string separator;
  for (int n = 1; n <= kMaxRanks; ++n) {
    if (!all_allow(divisors, n)) continue;
    message += separator + std::to_string(n);
    separator = ", ";
  }
  throw InputError(message);
}

bool is_wanted_beside(std::string_view name) {
  return name.find("token") != std::string_view::npos || name == "generation_config.json";
}

class RankPlanner {
 public:
  RankPlanner(const ConvertSource& source, const ConvertOptions& options)
      : source_(source),
        options_(options),
        dims_(read_dimensions(source)),
        parts_(options.model_parallel) {
    plan_.files.resize(static_cast<size_t>(parts_));
    for (int rank = 0; rank < parts_; ++rank) {
      plan_.files[static_cast<size_t>(rank)].name =
          "model" + std::to_string(rank) + "-mp" + std::to_string(parts_) + ".safetensors";
    }
    divisors_.push_back({"attention heads", dims_.heads});
    if (dims_.experts > 0) divisors_.push_back({"routed experts", dims_.experts});
  }

  ConvertPlan run() {
    for (const Checkpoint::Entry& entry : source_.checkpoint->entries()) collect(*entry.info);
    check_divisors(divisors_, source_.folder, parts_);
    for (const Item& item : items_) place(item);
    for (ConvertFile& file : plan_.files) align(&file);
    plan_.layout_out = "per-rank";
    plan_.ranks = parts_;
    plan_.side_files = side_files_of(source_, options_, is_wanted_beside);
    plan_.side_files.push_back({"config.json", "", source_.config_text});
    if (plan_.left_out > 0) {
      plan_.notes.push_back(std::to_string(plan_.left_out) +
                            " tensors of multi-token-prediction layers are left out: this layout "
                            "has no place for them");
    }
    return std::move(plan_);
  }

 private:
  struct Item {
    const TensorInfo* info;
    const TensorRole* role;  // null: unknown, copied to every rank
    TensorPlace place;
  };

  [[noreturn]] void fail(const TensorInfo& info, const std::string& what) const {
    throw InputError(source_.folder + ": tensor " + quote(info.name) + ": " + what);
  }

  void collect(const TensorInfo& info) {
    Item item{&info, nullptr, {}};
    item.role = role_of(info.name, &item.place);
    if (item.role == nullptr) {
      report_unknown(options_, source_.folder, info.name, &plan_);
    } else if (item.place.layer >= dims_.layers) {
      ++plan_.left_out;
      return;
    } else {
      check(item);
    }
    items_.push_back(std::move(item));
  }

  void check(const Item& item) {
    const TensorInfo& info = *item.info;
    const TensorRole& role = *item.role;
    if (role.demo_name.empty()) {
      fail(info, "belongs to a multi-token-prediction layer, but config.json says that layer " +
                     std::to_string(item.place.layer) + " is none");
    }
    const bool is_integer_weight =
        role.to_int8() && (info.dtype == DType::kI8 || info.dtype == DType::kU8);
    if (item.place.part == TensorPlace::Part::kIntScale || is_integer_weight) {
      fail(info, "the demo has no integer weights; convert with --to bf16 or fp8 first");
    }
    if (role.scope == TensorScope::kExpert && item.place.expert >= dims_.experts) {
      fail(info, "config.json has n_routed_experts " + std::to_string(dims_.experts));
    }
    if (role.slice != TensorSlice::kRows && role.slice != TensorSlice::kColumns) return;
    if (info.shape.rank() != 2) {
      fail(info, "shape " + info.shape.to_string() + ", want 2 dimensions");
    }
    if (item.place.part != TensorPlace::Part::kTensor) return;  // follows its weight
    const int axis = role.slice == TensorSlice::kRows ? 0 : 1;
    divisors_.push_back({(axis == 0 ? "the rows of " : "the columns of ") + quote(info.name),
                         info.shape[axis], info.dtype == DType::kF8E4M3});
  }

  void place(const Item& item) {
    const Tensor tensor = source_.checkpoint->tensor(item.info->name);
    const TensorSlice slice = item.role == nullptr ? TensorSlice::kWhole : item.role->slice;
    const std::string name =
        item.role == nullptr ? item.info->name : demo_name_of(*item.role, item.place);
    for (int rank = 0; rank < parts_; ++rank) {
      if (slice == TensorSlice::kByExpert && item.place.expert / (dims_.experts / parts_) != rank) {
        continue;
      }
      ConvertUnit unit = copy_unit(tensor, name);
      if (slice == TensorSlice::kRows) cut_rows(rank, &unit);
      if (slice == TensorSlice::kColumns) cut_columns(rank, &unit);
      plan_.files[static_cast<size_t>(rank)].units.push_back(std::move(unit));
    }
  }

  void cut_rows(int rank, ConvertUnit* unit) const {
    Shape& shape = unit->outputs.front().shape;
    CopyPiece& piece = unit->pieces.front();
    piece.row_bytes = piece.stride = piece.row_bytes / parts_;
    piece.data += rank * piece.row_bytes;
    shape = Shape{shape[0] / parts_, shape[1]};
  }

  void cut_columns(int rank, ConvertUnit* unit) const {
    TensorSpec& spec = unit->outputs.front();
    CopyPiece& piece = unit->pieces.front();
    piece.rows = spec.shape[0];
    piece.stride = dtype_bytes(spec.dtype, spec.shape[1]);
    piece.row_bytes = piece.stride / parts_;
    piece.data += rank * piece.row_bytes;
    spec.shape = Shape{spec.shape[0], spec.shape[1] / parts_};
  }

  const ConvertSource& source_;
  const ConvertOptions& options_;
  const Dimensions dims_;
  const int parts_;
  std::vector<Divisor> divisors_;
  std::vector<Item> items_;
  ConvertPlan plan_;
};

class JoinPlanner {
 public:
  JoinPlanner(const ConvertSource& source, const ConvertOptions& options)
      : source_(source), options_(options), dims_(read_dimensions(source)) {}

  ConvertPlan run() {
    for (size_t rank = 0; rank < source_.ranks.size(); ++rank) {
      for (const TensorInfo& info : source_.ranks[rank].header().tensors) add(rank, info);
    }
    for (const auto& [what, count] : expert_counts_) {
      if (count != dims_.experts) {
        throw InputError(source_.folder + ": " + std::to_string(count) + " tensors " + what +
                         ", config.json has n_routed_experts " + std::to_string(dims_.experts));
      }
    }
    plan_.layout_out = "huggingface";
    plan_.ranks = static_cast<int>(source_.ranks.size());
    plan_.side_files = side_files_of(source_, options_, is_wanted_beside);
    plan_.side_files.push_back({"config.json", "", source_.config_text});
    add_shards(std::move(units_), options_.shard_bytes, &plan_);
    return std::move(plan_);
  }

 private:
  [[noreturn]] void fail(size_t rank, const TensorInfo& info, const std::string& what) const {
    throw InputError(source_.ranks[rank].path() + ": tensor " + quote(info.name) + ": " + what);
  }

  void add(size_t rank, const TensorInfo& info) {
    TensorPlace place;
    const TensorRole* role = demo_role_of(info.name, &place);
    if (role != nullptr && role->scope == TensorScope::kExpert) {
      return add_expert(rank, info, *role, place);
    }
    if (rank != 0) {
      if (source_.ranks[0].find(info.name) == nullptr) fail(rank, info, "rank 0 has none");
      return;  // joined when rank 0 came by
    }
    if (role == nullptr) report_unknown(options_, source_.folder, info.name, &plan_);
    const std::string name = role == nullptr ? info.name : name_of(*role, place);
    const TensorSlice slice = role == nullptr ? TensorSlice::kWhole : role->slice;
    units_.push_back(join(info, name, slice));
  }

  void add_expert(size_t rank, const TensorInfo& info, const TensorRole& role,
                  const TensorPlace& place) {
    const int64_t ranks = static_cast<int64_t>(source_.ranks.size());
    if (place.expert >= dims_.experts) {
      fail(rank, info, "config.json has n_routed_experts " + std::to_string(dims_.experts));
    }
    if (place.expert * ranks / dims_.experts != static_cast<int64_t>(rank)) {
      fail(rank, info,
           "this expert belongs to rank " + std::to_string(place.expert * ranks / dims_.experts));
    }
    TensorPlace first = place;
    first.expert = 0;
    ++expert_counts_["like " + quote(name_of(role, first))];
    units_.push_back(copy_unit(source_.ranks[rank].tensor(info), name_of(role, place)));
  }

  ConvertUnit join(const TensorInfo& info, const std::string& name, TensorSlice slice) const {
    ConvertUnit unit = copy_unit(source_.ranks[0].tensor(info), name);
    if (slice != TensorSlice::kWhole && info.shape.rank() != 2) {
      fail(0, info, "shape " + info.shape.to_string() + ", want 2 dimensions");
    }
    for (size_t rank = 1; rank < source_.ranks.size(); ++rank) {
      const Tensor part = part_of(rank, info);
      if (slice == TensorSlice::kWhole) {
        if (std::memcmp(part.data, unit.pieces.front().data, static_cast<size_t>(info.bytes)) !=
            0) {
          fail(rank, info, "differs from rank 0's, but every rank should have the same");
        }
      } else {
        unit.pieces.push_back({part.data, 1, info.bytes, info.bytes});
      }
    }
    if (slice == TensorSlice::kWhole) return unit;
    const int64_t ranks = static_cast<int64_t>(source_.ranks.size());
    if (slice == TensorSlice::kRows) {
      unit.outputs.front().shape = Shape{info.shape[0] * ranks, info.shape[1]};
      return unit;
    }
    unit.outputs.front().shape = Shape{info.shape[0], info.shape[1] * ranks};
    unit.side_by_side = true;
    const int64_t row_bytes = dtype_bytes(info.dtype, info.shape[1]);
    for (CopyPiece& piece : unit.pieces) piece = {piece.data, info.shape[0], row_bytes, row_bytes};
    return unit;
  }

  Tensor part_of(size_t rank, const TensorInfo& first) const {
    const TensorInfo* info = source_.ranks[rank].find(first.name);
    if (info == nullptr) fail(0, first, "rank " + std::to_string(rank) + " has none");
    if (info->dtype != first.dtype || !(info->shape == first.shape)) {
      fail(rank, *info,
           std::string(dtype_name(info->dtype)) + " " + info->shape.to_string() + ", rank 0 has " +
               std::string(dtype_name(first.dtype)) + " " + first.shape.to_string());
    }
    return source_.ranks[rank].tensor(*info);
  }

  const ConvertSource& source_;
  const ConvertOptions& options_;
  const Dimensions dims_;
  std::map<std::string, int64_t> expert_counts_;
  std::vector<ConvertUnit> units_;
  ConvertPlan plan_;
};

}  // namespace

ConvertPlan plan_to_ranks(const ConvertSource& source, const ConvertOptions& options) {
  if (options.model_parallel < 1 || options.model_parallel > kMaxRanks) {
    throw UsageError("--model-parallel is a number from 1 to " + std::to_string(kMaxRanks));
  }
  return RankPlanner(source, options).run();
}

ConvertPlan plan_from_ranks(const ConvertSource& source, const ConvertOptions& options) {
  return JoinPlanner(source, options).run();
}

}  // namespace tamis
