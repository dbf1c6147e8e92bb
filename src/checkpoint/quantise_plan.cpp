// Which tensors of a Hugging Face checkpoint change their format, and what config.json says then.
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/convert_plan.h"
#include "checkpoint/quantise.h"

namespace tamis {
namespace {

constexpr const char* kQuantizationKey = "quantization_config";

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class QuantisePlanner {
 public:
  QuantisePlanner(const ConvertSource& source, const ConvertOptions& options)
      : source_(source), checkpoint_(*source.checkpoint), options_(options) {}

  ConvertPlan run() {
    for (const Checkpoint::Entry& entry : checkpoint_.entries()) add(*entry.info);
    if (changed_ == 0) {
      throw InputError(source_.folder +
                       ": nothing to convert: every weight that could be is in "
                       "this format already");
    }
    plan_.layout_out = "huggingface";
    plan_.side_files = side_files_of(source_, options_, goes_along);
    plan_.side_files.push_back({"config.json", "", config_text()});
    add_shards(std::move(units_), options_.shard_bytes, &plan_);
    return std::move(plan_);
  }

 private:
  void add(const TensorInfo& info) {
    TensorPlace place;
    const TensorRole* role = role_of(info.name, &place);
    if (role == nullptr) {
      report_unknown(options_, source_.folder, info.name, &plan_);
      units_.push_back(copy_unit(checkpoint_.tensor(info.name), info.name));
      return;
    }
    if (place.part != TensorPlace::Part::kTensor) {
      add_scale(info, *role, place);
      return;
    }
    const NumberFormat to = target(info, *role);
    if (to == NumberFormat::kKeep) {
      units_.push_back(copy_unit(checkpoint_.tensor(info.name), info.name));
    } else {
      add_weight(info, *role, to);
    }
  }

  // A scale goes along if its weight stays as it is; else the weight brings a new one.
  void add_scale(const TensorInfo& info, const TensorRole& role, TensorPlace place) {
    place.part = TensorPlace::Part::kTensor;
    const TensorInfo* weight = checkpoint_.find(name_of(role, place));
    if (weight == nullptr) {
      throw InputError(source_.folder + ": tensor \"" + printable(info.name) +
                       "\": a scale without its weight");
    }
    if (target(*weight, role) == NumberFormat::kKeep) {
      units_.push_back(copy_unit(checkpoint_.tensor(info.name), info.name));
    }
  }

  // The format that a weight gets; kKeep: it stays as it is.
  NumberFormat target(const TensorInfo& info, const TensorRole& role) const {
    const NumberFormat stored = stored_format(checkpoint_, info);
    const bool odd_columns =
        info.shape.rank() == 2 && stored == NumberFormat::kKeep && info.shape[1] % 2 != 0;
    const bool narrow = options_.to == NumberFormat::kFp8    ? role.to_fp8
                        : options_.to == NumberFormat::kInt8 ? role.to_int8()
                        : options_.to == NumberFormat::kInt4 ? role.to_int4() && !odd_columns
                                                             : false;
    if (narrow) return stored == options_.to ? NumberFormat::kKeep : options_.to;
    // What stays wider does not stay in another narrow format: a reader meets one scheme only.
    if (stored != NumberFormat::kKeep) return NumberFormat::kBf16;
    const bool matrix = info.shape.rank() == 2 && info.dtype != DType::kBF16;
    return options_.to == NumberFormat::kBf16 && matrix ? NumberFormat::kBf16 : NumberFormat::kKeep;
  }

  void add_weight(const TensorInfo& info, const TensorRole& role, NumberFormat to) {
    const StoredWeight stored(checkpoint_, info.name);
    const int64_t rows = stored.view().rows, cols = stored.view().cols;
    ConvertUnit unit;
    unit.weight = info.name;
    unit.kind = std::string(role.scope == TensorScope::kExpert ? "mlp.experts." : "") +
                std::string(role.name);
    unit.format = to;
    const Shape groups{rows, ceil_div(cols, kIntGroup)};
    switch (to) {
      case NumberFormat::kFp8:
        unit.outputs = {{info.name, DType::kF8E4M3, {rows, cols}},
                        {info.name + "_scale_inv",
                         DType::kF32,
                         {ceil_div(rows, kFp8Block), ceil_div(cols, kFp8Block)}}};
        break;
      case NumberFormat::kInt8:
        unit.outputs = {{info.name, DType::kI8, {rows, cols}},
                        {info.name + "_scale", DType::kBF16, groups}};
        break;
      case NumberFormat::kInt4:
        unit.outputs = {{info.name, DType::kU8, {rows, ceil_div(cols, 2)}},
                        {info.name + "_scale", DType::kBF16, groups}};
        break;
      default:
        unit.outputs = {{info.name, DType::kBF16, {rows, cols}}};
    }
    units_.push_back(std::move(unit));
    if (to == options_.to) ++changed_;
  }

  std::string config_text() const {
    OrderedJson config = parse_ordered_json(source_.config_text, source_.folder + "/config.json");
    if (!config.is_object()) throw InputError(source_.folder + "/config.json: not an object");
    if (options_.to == NumberFormat::kBf16) {
      config.erase(kQuantizationKey);
      for (const char* key : {"torch_dtype", "dtype"}) {
        if (config.contains(key)) config[key] = "bfloat16";
      }
    } else if (options_.to == NumberFormat::kFp8) {
      OrderedJson fp8 = {
          {"activation_scheme", "dynamic"}, {"fmt", "e4m3"}, {"quant_method", "fp8"}};
      if (options_.power_of_two_scales) fp8["scale_fmt"] = "ue8m0";
      fp8["weight_block_size"] = {kFp8Block, kFp8Block};
      config[kQuantizationKey] = fp8;
    } else {
      config[kQuantizationKey] = {
          {"quant_method", options_.to == NumberFormat::kInt8 ? "tamis-int8" : "tamis-int4"},
          {"group_size", kIntGroup}};
    }
    return config.dump(2) + "\n";
  }

  const ConvertSource& source_;
  const Checkpoint& checkpoint_;
  const ConvertOptions& options_;
  std::vector<ConvertUnit> units_;
  ConvertPlan plan_;
  int64_t changed_ = 0;
};

}  // namespace

ConvertPlan plan_quantise(const ConvertSource& source, const ConvertOptions& options) {
  return QuantisePlanner(source, options).run();
}

}  // namespace tamis
