#include "train/train_log.h"

#include <chrono>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/json.h"

namespace tamis {
namespace {

constexpr int64_t kMaxLog = int64_t{1} << 32;

double now() {
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since).count();
}

// The lines of the log up to `step`. A last line that a kill cut short is no JSON and goes.
std::string lines_up_to(const std::string& text, int64_t step) {
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string line = text.substr(begin, end - begin);
    const Json json = Json::parse(line, nullptr, false);
    if (!json.is_object() || json.value("step", int64_t{0}) > step) break;
    kept += line + "\n";
    begin = end + 1;
  }
  return kept;
}

// JSON has no NaN.
OrderedJson number(double x) { return std::isfinite(x) ? OrderedJson(x) : OrderedJson(nullptr); }

OrderedJson health_json(const IndexerHealth& h, int64_t layer) {
  const auto queries = static_cast<double>(std::max<int64_t>(1, h.queries));
  const auto selecting = static_cast<double>(std::max<int64_t>(1, h.selecting));
  return {{"layer", layer},
          {"kl", number(h.kl / queries)},
          {"entropy", number(h.entropy / queries)},
          {"selecting", static_cast<double>(h.selecting) / queries},
          {"recall", number(h.recall / selecting)},
          {"mass", number(h.mass / selecting)},
          {"worst_mass", number(h.worst_mass / selecting)},
          {"best_mass", number(h.best_mass / selecting)},
          {"first", number(h.first / selecting)},
          {"ties", number(h.ties / selecting)},
          {"look_back", number(h.look_back / selecting)},
          {"window", number(h.window / selecting)},
          {"negative", number(h.negative / selecting)}};
}

OrderedJson validation_json(const ValidationReport& v) {
  OrderedJson sources = OrderedJson::array(), layers = OrderedJson::array();
  for (const SourceLoss& s : v.sources) {
    sources.push_back({{"source", s.source},
                       {"loss", number(s.loss)},
                       {"accuracy", s.accuracy},
                       {"targets", s.targets}});
  }
  for (size_t l = 0; l < v.health.size(); ++l) {
    layers.push_back(health_json(v.health[l], static_cast<int64_t>(l)));
  }
  OrderedJson json = {{"sources", sources}, {"seconds", v.seconds}};
  if (!layers.empty()) {
    json["topk"] = v.topk;
    json["indexer"] = layers;
  }
  return json;
}

using Scalars = std::vector<std::pair<std::string, double>>;

void add_scalars(const std::string& tag, const OrderedJson& value, Scalars& to) {
  if (value.is_number()) {
    to.emplace_back(tag, value.get<double>());
  } else if (value.is_array() && !value.empty() && value[0].is_number()) {
    for (size_t i = 0; i < value.size(); ++i)
      add_scalars(tag + "/" + std::to_string(i), value[i], to);
  }
}

// The numbers of a line: train/loss, train/kl/LAYER, validation/SOURCE/loss, indexer/recall/LAYER.
Scalars scalars_of(const OrderedJson& line) {
  Scalars out;
  const auto validation = line.find("validation");
  if (validation == line.end()) {
    for (const auto& [name, value] : line.items()) {
      if (name != "step" && name != "time" && name != "stage_step") {
        add_scalars("train/" + name, value, out);
      }
    }
    return out;
  }
  for (const OrderedJson& s : (*validation)["sources"]) {
    const std::string tag = "validation/" + s["source"].get<std::string>() + "/";
    for (const char* name : {"loss", "accuracy"}) add_scalars(tag + name, s[name], out);
  }
  if (!validation->contains("indexer")) return out;
  for (const OrderedJson& layer : (*validation)["indexer"]) {
    const std::string at = "/" + std::to_string(layer["layer"].get<int64_t>());
    for (const auto& [name, value] : layer.items()) {
      if (name != "layer") add_scalars("indexer/" + name + at, value, out);
    }
  }
  return out;
}

void add_events(const std::string& line, EventFile& events) {
  const OrderedJson json = parse_ordered_json(line, "log.jsonl");
  events.add(json.value("time", 0.0), json.value("step", int64_t{0}), scalars_of(json));
}

}  // namespace

TrainLog::TrainLog(const std::string& folder, int64_t step) : path_(folder + "/log.jsonl") {
  std::string kept;
  if (std::filesystem::exists(path_)) {
    kept = lines_up_to(read_text_file(path_, kMaxLog), step);
    write_file_atomically(path_, kept);
  }
  out_.open(path_, std::ios::app | std::ios::binary);
  if (!out_) throw_errno(path_);
  events_ = std::make_unique<EventFile>(folder + "/tensorboard", now());
  for (size_t begin = 0; begin < kept.size();) {
    const size_t end = kept.find('\n', begin);
    add_events(kept.substr(begin, end - begin), *events_);
    begin = end + 1;
  }
}

void TrainLog::add_line(const std::string& line) {
  out_ << line << '\n' << std::flush;
  if (!out_) throw_errno(path_);
  add_events(line, *events_);
}

void TrainLog::add(const StepReport& r, const std::string& stage) {
  OrderedJson line = {{"step", r.step},
                      {"stage", stage},
                      {"stage_step", r.stage_step},
                      {"time", now()},
                      {"loss", number(r.loss)},
                      {"balance", number(r.balance)},
                      {"norm_model", number(r.norm_model)},
                      {"norm_indexer", number(r.norm_indexer)},
                      {"lr_model", r.lr_model},
                      {"lr_indexer", r.lr_indexer},
                      {"most_loaded", r.most_loaded},
                      {"tokens", r.tokens},
                      {"seconds", r.seconds},
                      {"flops", r.flops},
                      {"memory_mib", static_cast<double>(r.memory) / (1 << 20)}};
  if (r.mtp_loss != 0) line["mtp_loss"] = number(r.mtp_loss);
  if (!r.kl.empty()) line["kl"] = r.kl;
  if (r.skipped) line["skipped"] = true;
  add_line(line.dump());
  if (!r.validation) return;
  const OrderedJson validation = {{"step", r.step},
                                  {"stage", stage},
                                  {"time", now()},
                                  {"validation", validation_json(*r.validation)}};
  add_line(validation.dump());
}

}  // namespace tamis
