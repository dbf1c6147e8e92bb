#include "train/recipe.h"

#include <toml++/toml.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "base/error.h"
#include "base/json.h"
#include "train/input_file.h"

namespace tamis {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxRecipe = 1 << 20;

// The keys of one table: each may be asked for once, and none may be left over.
class Table {
 public:
  Table(const toml::table& table, std::string where) : table_(table), where_(std::move(where)) {}

  const std::string& where() const { return where_; }

  template <typename T>
  void get(const char* key, T& to, double least = -1e300, double most = 1e300) {
    asked_.insert(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) return;
    const auto value = node->value_exact<T>();
    if (!value) throw InputError(where_ + "." + key + ": of another type, want " + wanted<T>());
    if constexpr (std::is_arithmetic_v<T>) check(key, static_cast<double>(*value), least, most);
    to = *value;
  }
  // Also takes an integer.
  void get(const char* key, double& to, double least = -1e300, double most = 1e300) {
    asked_.insert(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) return;
    const auto value = node->value<double>();
    if (!value || node->is_boolean()) throw InputError(where_ + "." + key + ": want a number");
    check(key, *value, least, most);
    to = *value;
  }
  // Null if it is not there.
  const toml::node* node(const char* key) {
    asked_.insert(key);
    return table_.get(key);
  }
  bool has(const char* key) const { return table_.contains(key); }
  void require(const char* key) const {
    if (!has(key)) throw InputError(where_ + "." + key + ": missing");
  }
  void finish() const {
    for (const auto& [key, node] : table_) {
      if (asked_.count(std::string(key.str())) == 0) {
        throw InputError(where_ + "." + printable(key.str()) + ": no such key");
      }
    }
  }

 private:
  template <typename T>
  static const char* wanted() {
    if constexpr (std::is_same_v<T, bool>) return "true or false";
    return std::is_arithmetic_v<T> ? "a whole number" : "a string";
  }
  void check(const char* key, double value, double least, double most) const {
    if (value >= least && value <= most) return;
    std::ostringstream message;
    message << where_ << '.' << key << ": got " << value << ", want " << least << " to " << most;
    throw InputError(message.str());
  }

  const toml::table& table_;
  std::string where_;
  std::set<std::string> asked_;
};

constexpr double kMost = 1e12;

StageKind kind_of(const std::string& name, const std::string& where) {
  for (const StageKind kind : {StageKind::kPretrain, StageKind::kWarmup, StageKind::kSparse,
                               StageKind::kDense, StageKind::kSft}) {
    if (stage_name(kind) == name) return kind;
  }
  throw InputError(where + ".kind: got " + printable(name) +
                   ", want pretrain, warmup, sparse, dense or sft");
}

void read_schedule(Table& t, Schedule& s) {
  std::string kind = "constant";
  t.get("schedule", kind);
  if (kind == "cosine") {
    s.kind = Schedule::Kind::kCosine;
  } else if (kind == "wsd") {
    s.kind = Schedule::Kind::kWarmupStableDecay;
  } else if (kind != "constant") {
    throw InputError(t.where() + ".schedule: got " + printable(kind) +
                     ", want constant, cosine or wsd");
  }
  t.get("warmup_steps", s.warmup, 0, kMost);
  t.get("decay_share", s.decay, 0, 1);
  t.get("end_factor", s.end, 0, 1);
}

void read_adamw(Table& t, AdamwSettings& model, AdamwSettings& indexer) {
  t.require("lr");
  t.get("lr", model.learning_rate, 0, 10);
  t.get("beta1", model.beta1, 0, 0.99999);
  t.get("beta2", model.beta2, 0, 0.99999999);
  t.get("eps", model.eps, 0, 1);
  t.get("weight_decay", model.decay, 0, 10);
  t.get("clip", model.clip, 0, kMost);
  indexer = model;
  t.get("indexer_lr", indexer.learning_rate, 0, 10);
  t.get("indexer_clip", indexer.clip, 0, kMost);
}

TaskSettings read_task(Table& t) {
  std::string name;
  t.get("task", name);
  TaskSettings s;
  try {
    s.kind = task_from_name(name);
  } catch (const UsageError& e) {
    throw InputError(t.where() + ".task: " + e.what());
  }
  constexpr double kMany = 1 << 20;
  const auto is = [&](std::initializer_list<TaskKind> kinds) {
    return std::find(kinds.begin(), kinds.end(), s.kind) != kinds.end();
  };
  using K = TaskKind;
  if (is({K::kRecall, K::kNeedle, K::kVariables})) {
    t.get("keys", s.keys, s.kind == K::kRecall ? 0 : 1, kMany);
    t.get("min_length", s.min_length, 1, 1 << 24);
  }
  if (is({K::kRecall, K::kNeedle})) t.get("queries", s.queries, 1, kMany);
  if (is({K::kNeedle})) t.get("values", s.values, 1, kMany);
  if (is({K::kVariables})) t.get("hops", s.hops, 1, kMany);
  if (is({K::kCopy, K::kInduction})) t.get("words", s.words, 2, kMany);
  if (is({K::kArithmetic})) t.get("terms", s.terms, 2, 100);
  if (!is({K::kCopy, K::kInduction})) t.get("digits", s.digits, 1, 12);
  if (!is({K::kArithmetic})) t.get("syllables", s.syllables, 0, 4);
  return s;
}

// A folder of shards, or a list of tables: {shards = "folder", weight = 2} and {task = "recall"}.
std::vector<SourceSpec> read_sources(const toml::node& node, const std::string& where) {
  if (const auto folder = node.value_exact<std::string>()) return {{*folder, {}, 1}};
  const toml::array* list = node.as_array();
  if (list == nullptr || list->empty()) {
    throw InputError(where + ": want a folder, or a list of tables with shards or task");
  }
  std::vector<SourceSpec> sources;
  for (const toml::node& entry : *list) {
    const std::string at = where + "." + std::to_string(sources.size());
    if (!entry.is_table()) throw InputError(at + ": want a table with shards or task");
    Table t(*entry.as_table(), at);
    SourceSpec spec;
    t.get("weight", spec.weight, 1e-9, kMost);
    if (t.has("shards") == t.has("task")) throw InputError(at + ": want either shards or task");
    t.get("shards", spec.shards);
    if (t.has("shards")) t.get("answers", spec.answers);
    if (t.has("task")) spec.task = read_task(t);
    t.finish();
    sources.push_back(spec);
  }
  return sources;
}

Stage read_stage(const toml::table& table, const std::string& where) {
  Table t(table, where);
  Stage s;
  std::string kind;
  t.require("kind");
  t.get("kind", kind);
  s.kind = kind_of(kind, where);
  s.name = kind;
  t.get("name", s.name);
  for (const char* key : {"steps", "length"}) t.require(key);
  t.get("steps", s.steps, 1, kMost);
  t.get("length", s.length, 2, 1 << 24);
  t.get("batch", s.batch, 1, 1 << 20);
  t.get("micro_batch", s.micro_batch, 1, 1 << 20);
  t.get("recompute", s.recompute);
  t.get("rope_factor", s.rope_factor, 1, 1e6);
  t.get("rope_original", s.rope_original, 1, 1 << 24);
  t.get("topk", s.topk, 1, 1 << 24);
  t.get("kl_weight", s.kl_weight, 0, kMost);
  t.get("mtp_weight", s.mtp_weight, 0, 1e3);
  t.get("balance_weight", s.balance_weight, 0, kMost);
  t.get("bias_speed", s.bias_speed, 0, 1);
  if (const toml::node* data = t.node("data")) s.sources = read_sources(*data, where + ".data");
  read_schedule(t, s.schedule);
  read_adamw(t, s.model, s.indexer);
  t.finish();
  const bool file_name =
      !s.name.empty() &&
      s.name.find_first_not_of(
          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == std::string::npos;
  if (!file_name) throw InputError(where + ".name: want letters, digits, - and _");
  if (s.kind == StageKind::kSparse && s.topk == 0) {
    throw InputError(where +
                     ".topk: missing; want how many positions a query selects, below the length");
  }
  if (s.sparse() && s.kind != StageKind::kSparse && s.kind != StageKind::kSft) {
    throw InputError(where + ".topk: only a sparse or an sft stage selects");
  }
  if (s.sparse() && s.topk >= s.length && s.kl_weight > 0) {
    throw InputError(where + ".topk: got " + std::to_string(s.topk) + " for sequences of " +
                     std::to_string(s.length) +
                     " tokens: everything is selected and the indexer learns nothing of its "
                     "choice; want a top-k below the length, or kl_weight = 0");
  }
  if (s.rope_original > 0 && s.rope_factor == 0) {
    throw InputError(where + ".rope_original: only together with rope_factor");
  }
  if (s.kind == StageKind::kWarmup && s.mtp_weight != 0) {
    throw InputError(where + ".mtp_weight: a warm-up has no loss of predictions");
  }
  if (s.kind == StageKind::kWarmup && s.kl_weight == 0) {
    throw InputError(where + ".kl_weight: a warm-up learns from nothing else");
  }
  return s;
}

// "stage.0.steps=10" -> recipe["stage"][0]["steps"] = 10
void change(toml::table& root, const std::string& setting) {
  const size_t equals = setting.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw UsageError("train: --set " + printable(setting) + ": want KEY=VALUE");
  }
  const std::string path = setting.substr(0, equals), value = setting.substr(equals + 1);
  toml::table parsed;
  try {  // a bare word is a string
    parsed = toml::parse("value = " + value);
  } catch (const toml::parse_error&) {
    parsed.insert_or_assign("value", value);
  }
  toml::node* node = &root;
  std::istringstream parts(path);
  std::string part, next;
  std::getline(parts, part, '.');
  while (std::getline(parts, next, '.')) {
    toml::node* inner = nullptr;
    if (toml::table* table = node->as_table()) {
      if (!table->contains(part) && next.find_first_not_of("0123456789") != std::string::npos) {
        table->insert(part, toml::table());
      }
      inner = table->get(part);
    } else if (toml::array* array = node->as_array()) {
      inner = part.find_first_not_of("0123456789") == std::string::npos && part.size() < 6
                  ? array->get(static_cast<size_t>(std::stoul(part)))
                  : nullptr;
    }
    if (inner == nullptr) throw InputError("--set " + printable(path) + ": no " + printable(part));
    node = inner;
    part = next;
  }
  toml::table* table = node->as_table();
  if (table == nullptr) throw InputError("--set " + printable(path) + ": not a key of a table");
  table->insert_or_assign(part, *parsed.get("value"));
}

const toml::table& section(const toml::table& root, const char* key, const std::string& where) {
  const toml::table* table = root.get_as<toml::table>(key);
  if (table == nullptr) throw InputError(where + ": no table [" + key + "]");
  return *table;
}

// A path of the recipe, relative to the recipe's own folder.
void resolve(std::string& path, const fs::path& base) {
  if (!path.empty() && fs::path(path).is_relative()) path = (base / path).lexically_normal();
}

void read_run(Recipe& r, const toml::table& root, const std::string& where) {
  Table model(section(root, "model", where), where + ": model");
  model.get("config", r.config);
  model.get("from", r.from);
  model.get("tokenizer", r.tokenizer);
  model.finish();
  if (r.config.empty() && r.from.empty()) {
    throw InputError(where +
                     ": model: want config (a fresh model), from (a folder to start from) or "
                     "both (another configuration of the folder's weights)");
  }
  if (r.tokenizer.empty()) r.tokenizer = r.from;
  if (r.tokenizer.empty()) throw InputError(where + ": model.tokenizer: missing");
  Table data(section(root, "data", where), where + ": data");
  data.require("train");
  const std::vector<SourceSpec> sources = read_sources(*data.node("train"), where + ": data.train");
  for (Stage& s : r.stages) {
    if (s.sources.empty()) s.sources = sources;
  }
  if (const toml::node* held_out = data.node("validation")) {
    r.validation = read_sources(*held_out, where + ": data.validation");
  }
  data.finish();
  Table run(section(root, "run", where), where + ": run");
  run.require("out");
  run.get("out", r.out);
  int64_t seed = 0;
  run.get("seed", seed, 0, 9e15);
  r.seed = static_cast<uint64_t>(seed);
  run.get("save", r.save);
  run.get("save_every", r.save_every, 1, kMost);
  run.get("keep_last", r.keep_last, 1, kMost);
  run.get("keep_every", r.keep_every, 0, kMost);
  run.get("validate_every", r.validate_every, 1, kMost);
  run.get("validation_sequences", r.validation_sequences, 1, kMost);
  run.get("measure_sequences", r.measure_sequences, 0, kMost);
  run.get("branch_from", r.branch_from);
  run.get("spike_factor", r.spike_factor, 0, kMost);
  run.get("max_skips", r.max_skips, 1, kMost);
  run.get("export", r.export_dtype);
  run.get("backend", r.backend);
  run.get("precision", r.precision);
  run.get("mode", r.mode);
  run.get("sparse_form", r.sparse_form);
  run.get("expert_parallel", r.expert_parallel, 1, 4096);
  run.get("tensor_parallel", r.tensor_parallel, 1, 4096);
  run.finish();
  if (r.export_dtype != "bf16" && r.export_dtype != "f32") {
    throw InputError(where + ": run.export: want bf16 or f32");
  }
  if (r.precision != "bf16" && r.precision != "f32" && r.precision != "fp8") {
    throw InputError(where + ": run.precision: want f32, bf16 or fp8");
  }
  if (r.mode != "deterministic" && r.mode != "fast") {
    throw InputError(where + ": run.mode: want deterministic or fast");
  }
  if (r.sparse_form != "auto" && r.sparse_form != "gather" && r.sparse_form != "mask") {
    throw InputError(where + ": run.sparse_form: want auto, gather or mask");
  }
}

void read_stages(Recipe& r, const toml::table& root, const std::string& where) {
  const toml::array* stages = root.get_as<toml::array>("stage");
  if (stages == nullptr || stages->empty()) throw InputError(where + ": no [[stage]]");
  std::set<std::string> names;
  for (const toml::node& node : *stages) {
    const std::string at = where + ": stage " + std::to_string(r.stages.size());
    if (!node.is_table()) throw InputError(at + ": want a table");
    r.stages.push_back(read_stage(*node.as_table(), at));
    if (!names.insert(r.stages.back().name).second) {
      throw InputError(at + ": the name " + r.stages.back().name + " is taken; give it another");
    }
  }
}

}  // namespace

std::string stage_name(StageKind kind) {
  switch (kind) {
    case StageKind::kPretrain:
      return "pretrain";
    case StageKind::kWarmup:
      return "warmup";
    case StageKind::kSparse:
      return "sparse";
    case StageKind::kDense:
      return "dense";
    case StageKind::kSft:
      return "sft";
  }
  return "";
}

int64_t Recipe::total_steps() const {
  int64_t total = 0;
  for (const Stage& s : stages) total += s.steps;
  return total;
}

bool Recipe::begins_like(const std::string& other, int64_t count) const {
  const Json a = parse_json(text, "recipe"), b = parse_json(other, "recipe of a checkpoint");
  const auto same = [&](const std::vector<std::string>& path) {
    const Json *x = &a, *y = &b;
    for (const std::string& key : path) {
      const bool in_x = x->contains(key), in_y = y->contains(key);
      if (!in_x || !in_y) return in_x == in_y;
      x = &x->at(key);
      y = &y->at(key);
    }
    return *x == *y;
  };
  if (!same({"model"}) || !same({"data", "train"}) || !same({"run", "seed"}) ||
      !same({"run", "precision"}) || !same({"run", "spike_factor"})) {
    return false;
  }
  const Json &x = a.at("stage"), &y = b.at("stage");
  const auto n = static_cast<size_t>(count);
  if (n > x.size() || n > y.size()) return false;
  for (size_t i = 0; i < n; ++i) {
    if (x.at(i) != y.at(i)) return false;
  }
  return true;
}

Recipe Recipe::load(const std::string& path, const std::vector<std::string>& settings) {
  toml::table root;
  want_file(path, "want the recipe of a run, a TOML file; docs/training.md has one to begin with");
  try {
    root = toml::parse(read_text_file(path, kMaxRecipe), path);
  } catch (const toml::parse_error& e) {
    throw InputError(path + ":" + std::to_string(e.source().begin.line) + ": " +
                     std::string(e.description()));
  }
  for (const std::string& setting : settings) change(root, setting);
  for (const auto& [key, node] : root) {
    static const std::set<std::string_view> known = {"model", "data", "run", "stage"};
    if (known.count(key.str()) == 0) {
      throw InputError(path + ": " + printable(key.str()) + ": no such key");
    }
  }
  Recipe r;
  read_stages(r, root, path);
  read_run(r, root, path);
  // A run may go on with another back end, and divided otherwise.
  if (toml::table* run = root["run"].as_table()) {
    for (const char* key : {"backend", "expert_parallel", "tensor_parallel"}) run->erase(key);
  }
  std::ostringstream text;
  text << toml::json_formatter(root);
  r.text = text.str();
  const fs::path base = fs::path(path).parent_path();
  for (std::string* p : {&r.config, &r.from, &r.tokenizer, &r.out, &r.branch_from})
    resolve(*p, base);
  for (Stage& s : r.stages) {
    for (SourceSpec& source : s.sources) resolve(source.shards, base);
  }
  for (SourceSpec& source : r.validation) resolve(source.shards, base);
  return r;
}

}  // namespace tamis
