#include "base/json.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <vector>

#include "base/error.h"

namespace tamis {
namespace {

// Builds the value through the library's own DOM builder, after checking depth and duplicates.
template <typename J>
class StrictSax : public nlohmann::detail::json_sax_dom_parser<J> {
  using Base = nlohmann::detail::json_sax_dom_parser<J>;

 public:
  StrictSax(J& target, const JsonLimits& limits, const std::string& where)
      : Base(target, /*allow_exceptions=*/true), limits_(limits), where_(where) {}

  bool start_object(std::size_t n) {
    enter();
    keys_.emplace_back();
    key_counts_.push_back(0);
    return Base::start_object(n);
  }
  bool end_object() {
    --depth_;
    keys_.pop_back();
    key_counts_.pop_back();
    return Base::end_object();
  }
  bool start_array(std::size_t n) {
    enter();
    return Base::start_array(n);
  }
  bool end_array() {
    --depth_;
    return Base::end_array();
  }
  bool key(typename J::string_t& name) {
    if (++key_counts_.back() > limits_.max_object_keys) {
      throw InputError(where_ + ": an object has more than " +
                       std::to_string(limits_.max_object_keys) + " keys");
    }
    if (!limits_.allow_duplicate_keys && !keys_.back().insert(name).second) {
      throw InputError(where_ + ": duplicate key \"" + printable(name) + "\"");
    }
    return Base::key(name);
  }
  bool number_float(typename J::number_float_t value, const typename J::string_t& lexeme) {
    if (limits_.long_integers_as_binary && lexeme.find_first_of(".eE") == std::string::npos) {
      typename J::binary_t digits(std::vector<uint8_t>(lexeme.begin(), lexeme.end()));
      return Base::binary(digits);
    }
    return Base::number_float(value, lexeme);
  }

 private:
  void enter() {
    if (++depth_ > limits_.max_depth) {
      throw InputError(where_ + ": nested deeper than " + std::to_string(limits_.max_depth));
    }
  }

  const JsonLimits& limits_;
  const std::string& where_;
  int depth_ = 0;
  std::vector<std::unordered_set<std::string>> keys_;
  std::vector<int64_t> key_counts_;
};

template <typename J>
J parse(std::string_view text, const std::string& where, const JsonLimits& limits) {
  J root;
  StrictSax<J> sax(root, limits, where);
  try {
    J::sax_parse(text.begin(), text.end(), &sax);
  } catch (const nlohmann::json::exception& e) {
    throw InputError(where + ": not valid JSON: " + printable(e.what(), 200));
  }
  return root;
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where, const JsonLimits& limits) {
  return parse<Json>(text, where, limits);
}

OrderedJson parse_ordered_json(std::string_view text, const std::string& where,
                               const JsonLimits& limits) {
  return parse<OrderedJson>(text, where, limits);
}

std::string read_text_file(const std::string& path, int64_t max_bytes) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) throw InputError(path + ": " + std::strerror(errno));
  const int64_t size = in.tellg();
  if (size < 0) throw InputError(path + ": cannot be read");
  if (size > max_bytes) {
    throw InputError(path + ": " + std::to_string(size) + " bytes, the limit is " +
                     std::to_string(max_bytes));
  }
  std::string text(static_cast<size_t>(size), '\0');
  in.seekg(0);
  if (!in.read(text.data(), size)) throw InputError(path + ": cannot be read");
  return text;
}

}  // namespace tamis
