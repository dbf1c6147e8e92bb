#include "text/tokenizer_json_sax.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/error.h"
#include "base/json.h"

namespace tamis {
namespace {

constexpr int kMaxDepth = 32;  // real files need 7

class TokenizerSax : public nlohmann::detail::json_sax_dom_parser<Json> {
  using Dom = nlohmann::detail::json_sax_dom_parser<Json>;

 public:
  TokenizerSax(size_t file_bytes, const std::string& where, TokenizerTables& tables, Json& rest)
      : Dom(rest, /*allow_exceptions=*/true),
        max_id_(std::min<uint64_t>(file_bytes, INT32_MAX)),
        where_(where),
        tables_(tables) {}

  bool null() { return state_ == State::kRest ? Dom::null() : wrong_type("null"); }
  bool boolean(bool value) {
    return state_ == State::kRest ? Dom::boolean(value) : wrong_type("a boolean");
  }
  bool number_float(double value, const std::string& text) {
    return state_ == State::kRest ? Dom::number_float(value, text) : wrong_type("a fraction");
  }
  bool number_integer(int64_t value) {
    if (state_ == State::kRest) return Dom::number_integer(value);
    return state_ == State::kVocab ? bad_id(std::to_string(value)) : wrong_type("a number");
  }
  bool number_unsigned(uint64_t value) {
    if (state_ == State::kRest) return Dom::number_unsigned(value);
    return state_ == State::kVocab ? add_token(value) : wrong_type("a number");
  }
  bool string(std::string& value) {
    if (state_ == State::kRest) return Dom::string(value);
    if (state_ == State::kMerges) return add_merge(value);
    return state_ == State::kMergePair ? add_half(value) : wrong_type("a string");
  }
  bool key(std::string& name) {
    if (state_ == State::kVocab) {
      token_ = name;
      return true;
    }
    if (!keys_.back().insert(name).second) fail("duplicate key \"" + printable(name) + "\"");
    if (keys_.size() == 1) section_ = name;
    if (keys_.size() == 2) field_ = name;
    return Dom::key(name);
  }
  bool start_object(size_t size) {
    if (state_ != State::kRest) return wrong_type("an object");
    if (in_model() && field_ == "vocab") {
      state_ = State::kVocab;
      tables_.has_vocab = true;
      return true;
    }
    enter();
    keys_.emplace_back();
    return Dom::start_object(size);
  }
  bool end_object() {
    if (state_ == State::kVocab) return leave_table();
    --depth_;
    keys_.pop_back();
    return Dom::end_object();
  }
  bool start_array(size_t size) {
    if (state_ == State::kMerges) {
      state_ = State::kMergePair;
      halves_ = 0;
      return true;
    }
    if (state_ != State::kRest) return wrong_type("an array");
    if (in_model() && field_ == "merges") {
      state_ = State::kMerges;
      tables_.has_merges = true;
      return true;
    }
    enter();
    return Dom::start_array(size);
  }
  bool end_array() {
    if (state_ == State::kMerges) return leave_table();
    if (state_ == State::kMergePair) return end_pair();
    --depth_;
    return Dom::end_array();
  }

 private:
  enum class State { kRest, kVocab, kMerges, kMergePair };

  [[noreturn]] void fail(const std::string& what) const { throw InputError(where_ + ": " + what); }

  // Directly inside the object "model" of the root object.
  bool in_model() const { return depth_ == 2 && keys_.size() == 2 && section_ == "model"; }

  void enter() {
    if (++depth_ > kMaxDepth) fail(fmt::format("nested deeper than {}", kMaxDepth));
  }

  bool leave_table() {
    state_ = State::kRest;
    return Dom::null();
  }

  [[noreturn]] bool wrong_type(const char* found) const {
    if (state_ == State::kVocab) {
      fail(fmt::format("model.vocab: \"{}\": want an id, found {}", printable(token_), found));
    }
    fail(fmt::format("{}: want \"LEFT RIGHT\" or [LEFT, RIGHT], found {}", merge_name(), found));
  }

  [[noreturn]] bool bad_id(const std::string& id) const {
    fail(fmt::format("model.vocab: \"{}\": id {} is outside [0, {})", printable(token_), id,
                     max_id_));
  }

  std::string merge_name() const {
    return fmt::format("model.merges[{}]", tables_.merges.entries.size());
  }

  bool add_token(uint64_t id) {
    if (id >= max_id_) bad_id(std::to_string(id));
    if (!tables_.vocab.add(token_, static_cast<int32_t>(id))) {
      fail(fmt::format("model.vocab: \"{}\" is there twice", printable(token_)));
    }
    return true;
  }

  bool add_merge(std::string_view line) {
    const size_t space = line.find(' ');
    if (space == line.npos || line.find(' ', space + 1) != line.npos) {
      fail(fmt::format("{}: \"{}\": want two tokens with one space between", merge_name(),
                       printable(line)));
    }
    return add_pair(line.substr(0, space), line.substr(space + 1));
  }

  bool add_pair(std::string_view left, std::string_view right) {
    if (left.empty() || right.empty()) fail(merge_name() + ": an empty token");
    MergeKeys& m = tables_.merges;
    m.entries.push_back({static_cast<uint32_t>(m.text.size()), static_cast<uint32_t>(left.size()),
                         static_cast<uint32_t>(right.size())});
    m.text += left;
    m.text += right;
    return true;
  }

  bool add_half(const std::string& token) {
    if (halves_ == 2) fail(merge_name() + ": more than two tokens");
    (halves_++ == 0 ? left_ : right_) = token;
    return true;
  }

  bool end_pair() {
    if (halves_ != 2) fail(merge_name() + ": fewer than two tokens");
    state_ = State::kMerges;
    return add_pair(left_, right_);
  }

  const uint64_t max_id_;
  const std::string& where_;
  TokenizerTables& tables_;
  State state_ = State::kRest;
  int depth_ = 0;
  int halves_ = 0;
  std::string section_, field_, token_, left_, right_;
  std::vector<std::unordered_set<std::string>> keys_;  // of the open objects
};

}  // namespace

void parse_tokenizer_json(std::string_view json, const std::string& where, TokenizerTables& tables,
                          Json& rest) {
  TokenizerSax sax(json.size(), where, tables, rest);
  try {
    Json::sax_parse(json.begin(), json.end(), &sax);
  } catch (const Json::exception& e) {
    throw InputError(where + ": not valid JSON: " + printable(e.what(), 200));
  }
}

}  // namespace tamis
