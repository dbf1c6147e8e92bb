// What a difference holds of each tensor, and what adding it to its base gives.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/convert_plan.h"
#include "checkpoint/difference.h"
#include "checkpoint/quantise.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

constexpr char kFormat[] = "tamis-difference";
constexpr char kVersion[] = "1";
constexpr int64_t kStripBytes = int64_t{4} << 20;

using ByteSink = FunctionRef<void(std::span<const std::byte>)>;

[[noreturn]] void fail(const std::string& where, std::string_view tensor, const std::string& what) {
  throw InputError(where + ": tensor \"" + printable(tensor) + "\": " + what);
}

std::string describe(const TensorInfo& info) {
  return std::string(dtype_name(info.dtype)) + " " + info.shape.to_string();
}

bool is_plain(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

std::string scale_name(const std::string& name) { return name + "_scale"; }

std::string kind_of(const std::string& name) {
  const TensorRole* role = role_of(name);
  if (role == nullptr) return name;
  return std::string(role->scope == TensorScope::kExpert ? "mlp.experts." : "") +
         std::string(role->name);
}

Weight matrix_view(const Tensor& tensor) {
  Weight w;
  w.data = tensor.data;
  w.dtype = tensor.dtype;
  w.rows = tensor.shape[0];
  w.cols = tensor.shape[1];
  w.row_bytes = dtype_bytes(w.dtype, w.cols);
  return w;
}

// Row of a weight as the file stores it, nearest even.
void store_row(const float* x, int64_t n, DType dtype, std::byte* out) {
  for (int64_t i = 0; i < n; ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(out + 4 * i, x + i, 4);
    } else {
      const uint16_t bits = dtype == DType::kBF16 ? float_to_bf16(x[i]) : float_to_f16(x[i]);
      std::memcpy(out + 2 * i, &bits, 2);
    }
  }
}

// base + difference, rounded once to float and once to `dtype`.
void add_row(const float* base, const float* difference, int64_t n, DType dtype, std::byte* out) {
  std::vector<float> sum(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) sum[static_cast<size_t>(i)] = base[i] + difference[i];
  store_row(sum.data(), n, dtype, out);
}

// body(row, out) for each row of row_bytes bytes, in strips that go to `sink` in order.
void write_rows(int64_t rows, int64_t row_bytes, ThreadPool& pool, ByteSink sink,
                FunctionRef<void(int64_t row, std::byte* out)> body) {
  const int64_t strip = std::max<int64_t>(1, kStripBytes / std::max<int64_t>(1, row_bytes));
  std::vector<std::byte> buffer;
  for (int64_t begin = 0; begin < rows; begin += strip) {
    const int64_t count = std::min(strip, rows - begin);
    buffer.assign(static_cast<size_t>(count * row_bytes), std::byte{0});
    pool.run(count, [&](int64_t i, int) { body(begin + i, buffer.data() + i * row_bytes); });
    sink(buffer);
  }
}

// One matrix of the target against the base's.
struct PackedMatrix {
  std::string where, name;
  Weight target, base;
  int bits;

  // Codes of one row; what a reader will get of it counts in `error`.
  void pack_row(int64_t row, uint8_t* codes, uint16_t* scale, RoundingError* error) const {
    const size_t n = static_cast<size_t>(target.cols);
    std::vector<float> want(n), from(n), d(n), back(n);
    dequantize_row(target, row, 0, target.cols, want.data());
    dequantize_row(base, row, 0, base.cols, from.data());
    for (size_t i = 0; i < n; ++i) d[i] = want[i] - from[i];
    check_finite(d, row, "the difference is not finite, so it cannot be packed");
    pack_difference_row(d.data(), target.cols, bits, codes, scale);
    unpack_difference_row(codes, *scale, target.cols, bits, back.data());
    std::vector<std::byte> stored(static_cast<size_t>(target.row_bytes));
    add_row(from.data(), back.data(), target.cols, target.dtype, stored.data());
    const Weight restored{stored.data(), target.dtype, 1, target.cols, target.row_bytes};
    dequantize_row(restored, 0, 0, target.cols, back.data());
    check_finite(back, row, "the restored value would not be finite; use more --bits");
    for (size_t i = 0; i < n; ++i) {
      const double off = static_cast<double>(back[i]) - static_cast<double>(want[i]);
      error->error_squares += off * off;
      error->weight_squares += static_cast<double>(want[i]) * static_cast<double>(want[i]);
    }
  }

  void check_finite(const std::vector<float>& x, int64_t row, const char* what) const {
    for (size_t i = 0; i < x.size(); ++i) {
      if (std::isfinite(x[i])) continue;
      fail(where, name, "element [" + std::to_string(row) + "," + std::to_string(i) + "]: " + what);
    }
  }

  RoundingError write(ThreadPool& pool, ByteSink sink) const {
    const size_t rows = static_cast<size_t>(target.rows);
    std::vector<uint16_t> scales(rows);
    std::vector<RoundingError> errors(rows);
    write_rows(target.rows, difference_row_bytes(target.cols, bits), pool, sink,
               [&](int64_t row, std::byte* out) {
                 const size_t at = static_cast<size_t>(row);
                 pack_row(row, reinterpret_cast<uint8_t*>(out), &scales[at], &errors[at]);
               });
    sink(std::as_bytes(std::span(scales)));
    RoundingError total;
    for (const RoundingError& error : errors) total.add(error);
    total.tensors = 1;
    total.elements = target.rows * target.cols;
    return total;
  }
};

class DifferencePlanner {
 public:
  DifferencePlanner(const ConvertSource& source, const ConvertOptions& options)
      : source_(source), target_(*source.checkpoint), base_(*source.base), options_(options) {}

  ConvertPlan run() {
    check_options();
    check_configs();
    for (const Checkpoint::Entry& entry : base_.entries()) {
      if (!target_.contains(entry.info->name)) {
        fail(target_.folder(), entry.info->name, "missing; " + base_.folder() + " has it");
      }
    }
    ConvertFile file;
    file.name = kDifferenceName;
    for (const Checkpoint::Entry& entry : target_.entries()) add(*entry.info, &file);
    if (file.units.empty()) {
      throw InputError(target_.folder() + ": the same weights as " + base_.folder() +
                       ": there is no difference to write");
    }
    align(&file);
    file.metadata = {{"format", kFormat},
                     {"version", kVersion},
                     {"bits", std::to_string(options_.difference_bits)},
                     {"base_xxh3_128", weights_checksum(base_)}};
    ConvertPlan plan;
    plan.files.push_back(std::move(file));
    plan.layout_out = "difference";
    return plan;
  }

 private:
  void check_options() const {
    if (options_.difference_bits < 1 || options_.difference_bits > kMaxDifferenceBits) {
      throw UsageError("--bits " + std::to_string(options_.difference_bits) + ": want 1 to 8");
    }
    if (options_.manifest) throw UsageError("--manifest is for folders that hold a model");
  }

  // The restored folder gets the base's configuration.
  void check_configs() const {
    const Json target = parse_json(target_.config_text(), target_.folder() + "/config.json");
    const Json base = parse_json(base_.config_text(), base_.folder() + "/config.json");
    if (target == base) return;
    std::string key;
    for (const Json* of : {&target, &base}) {
      if (!of->is_object()) continue;
      for (const auto& [name, value] : of->items()) {
        const bool same = target.is_object() && base.is_object() && target.contains(name) &&
                          base.contains(name) && target[name] == base[name];
        if (!same && key.empty()) key = name;
      }
    }
    throw InputError(target_.folder() + "/config.json: \"" + printable(key) + "\" differs from " +
                     base_.folder() +
                     "; a difference holds weights only, so both need one configuration");
  }

  void add(const TensorInfo& info, ConvertFile* file) const {
    const TensorInfo* base = base_.find(info.name);
    if (base == nullptr) {
      fail(target_.folder(), info.name, "not in " + base_.folder() + "; both need one shape");
    }
    if (base->dtype != info.dtype || !(base->shape == info.shape)) {
      fail(target_.folder(), info.name,
           describe(info) + ", but " + describe(*base) + " in " + base_.folder());
    }
    if (!is_plain(info.dtype)) {
      fail(target_.folder(), info.name,
           std::string(dtype_name(info.dtype)) +
               "; a difference is of plain numbers: convert both folders with --to bf16 first");
    }
    const Tensor target = target_.tensor(info.name), from = base_.tensor(info.name);
    if (info.bytes == 0 ||
        std::memcmp(target.data, from.data, static_cast<size_t>(info.bytes)) == 0) {
      return;  // a tensor that the file leaves out is the base's
    }
    if (is_packed(info)) {
      file->units.push_back(pack(info, target, from));
      return;
    }
    for (int64_t i = 0; i < info.shape.elements(); ++i) {
      if (std::isfinite(tensor_element(target, i))) continue;
      fail(target_.folder(), info.name, "element " + std::to_string(i) + " is not finite");
    }
    file->units.push_back(copy_unit(target, info.name));
  }

  // Vectors, and matrices that would not get smaller, are stored whole.
  bool is_packed(const TensorInfo& info) const {
    return info.shape.rank() == 2 &&
           difference_row_bytes(info.shape[1], options_.difference_bits) + 2 <
               dtype_bytes(info.dtype, info.shape[1]);
  }

  ConvertUnit pack(const TensorInfo& info, const Tensor& target, const Tensor& from) const {
    const int bits = options_.difference_bits;
    ConvertUnit unit;
    unit.outputs = {
        {info.name, DType::kU8, {info.shape[0], difference_row_bytes(info.shape[1], bits)}},
        {scale_name(info.name), DType::kBF16, {info.shape[0]}}};
    unit.kind = kind_of(info.name);
    const PackedMatrix matrix{target_.folder(), info.name, matrix_view(target), matrix_view(from),
                              bits};
    unit.make = [matrix](ThreadPool& pool, ByteSink sink) { return matrix.write(pool, sink); };
    return unit;
  }

  const ConvertSource& source_;
  const Checkpoint& target_;
  const Checkpoint& base_;
  const ConvertOptions& options_;
};

class AddPlanner {
 public:
  AddPlanner(const ConvertSource& source, const ConvertOptions& options)
      : source_(source), base_(*source.checkpoint), file_(*source.difference), options_(options) {}

  ConvertPlan run() {
    read_metadata();
    std::vector<ConvertUnit> units;
    for (const Checkpoint::Entry& entry : base_.entries()) units.push_back(unit_of(*entry.info));
    for (const TensorInfo& info : file_.header().tensors) {
      if (used_.count(info.name) == 0) {
        fail(file_.path(), info.name, "not of " + base_.folder() + "; the file is damaged");
      }
    }
    ConvertPlan plan;
    plan.layout_out = "huggingface";
    plan.side_files = side_files_of(source_, options_, goes_along);
    plan.side_files.push_back({"config.json", "", source_.config_text});
    add_shards(std::move(units), options_.shard_bytes, &plan);
    return plan;
  }

 private:
  void read_metadata() {
    const auto get = [this](const char* key) {
      const auto it = file_.header().metadata.find(key);
      return it == file_.header().metadata.end() ? std::string() : it->second;
    };
    if (get("format") != kFormat) {
      throw InputError(file_.path() +
                       ": not a difference, which `tamis convert --difference-from` writes");
    }
    const std::string bits = get("bits");
    if (get("version") != kVersion || bits.size() != 1 || bits[0] < '1' || bits[0] > '8') {
      throw InputError(file_.path() + ": version \"" + printable(get("version")) + "\", bits \"" +
                       printable(bits) + "\"; this program reads version 1 with 1 to 8 bits");
    }
    bits_ = bits[0] - '0';
    const std::string found = weights_checksum(base_), want = get("base_xxh3_128");
    if (found != want) {
      throw InputError(base_.folder() + ": other weights (" + found + ") than those that " +
                       file_.path() + " was made from (" + printable(want) +
                       "); give the folder that --difference-from named, unchanged");
    }
  }

  ConvertUnit unit_of(const TensorInfo& info) {
    const TensorInfo* stored = file_.find(info.name);
    if (stored == nullptr) return copy_unit(base_.tensor(info.name), info.name);
    used_.insert(stored->name);
    const TensorInfo* scale = file_.find(scale_name(info.name));
    if (scale == nullptr) {
      if (stored->dtype != info.dtype || !(stored->shape == info.shape)) {
        fail(file_.path(), info.name, describe(*stored) + ", want " + describe(info));
      }
      return copy_unit(file_.tensor(*stored), info.name);
    }
    used_.insert(scale->name);
    return restore(info, *stored, *scale);
  }

  ConvertUnit restore(const TensorInfo& info, const TensorInfo& stored, const TensorInfo& scale) {
    if (info.shape.rank() != 2 || !is_plain(info.dtype)) {
      fail(file_.path(), info.name, "packed, but " + describe(info) + " in " + base_.folder());
    }
    const int64_t rows = info.shape[0];
    const TensorInfo codes_want{
        info.name, DType::kU8, {rows, difference_row_bytes(info.shape[1], bits_)}, 0, 0};
    const TensorInfo scale_want{scale.name, DType::kBF16, {rows}, 0, 0};
    for (const auto& [have, want] : {std::pair(stored, codes_want), std::pair(scale, scale_want)}) {
      if (have.dtype != want.dtype || !(have.shape == want.shape)) {
        fail(file_.path(), have.name, describe(have) + ", want " + describe(want));
      }
    }
    const Tensor scales = file_.tensor(scale);
    check_scales(scale.name, scales);
    ConvertUnit unit;
    unit.outputs = {{info.name, info.dtype, info.shape}};
    unit.make = [base = matrix_view(base_.tensor(info.name)), scales, codes = file_.tensor(stored),
                 bits = bits_](ThreadPool& pool, ByteSink sink) {
      const int64_t code_bytes = difference_row_bytes(base.cols, bits);
      write_rows(base.rows, base.row_bytes, pool, sink, [&](int64_t row, std::byte* out) {
        std::vector<float> from(static_cast<size_t>(base.cols)), d(from.size());
        uint16_t value = 0;
        std::memcpy(&value, scales.data + 2 * row, 2);
        dequantize_row(base, row, 0, base.cols, from.data());
        unpack_difference_row(reinterpret_cast<const uint8_t*>(codes.data) + row * code_bytes,
                              value, base.cols, bits, d.data());
        add_row(from.data(), d.data(), base.cols, base.dtype, out);
      });
      return RoundingError();
    };
    return unit;
  }

  void check_scales(const std::string& name, const Tensor& scales) const {
    for (int64_t row = 0; row < scales.shape[0]; ++row) {
      const float value = tensor_element(scales, row);
      if (std::isfinite(value) && value >= 0) continue;
      fail(file_.path(), name,
           "element [" + std::to_string(row) +
               "] is not a finite number of 0 or more; the file is damaged");
    }
  }

  const ConvertSource& source_;
  const Checkpoint& base_;
  const SafetensorsFile& file_;
  const ConvertOptions& options_;
  int bits_ = 0;
  std::set<std::string> used_;
};

}  // namespace

ConvertPlan plan_difference(const ConvertSource& source, const ConvertOptions& options) {
  return DifferencePlanner(source, options).run();
}

ConvertPlan plan_add(const ConvertSource& source, const ConvertOptions& options) {
  return AddPlanner(source, options).run();
}

}  // namespace tamis
