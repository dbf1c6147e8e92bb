#include "server/json_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "server/api_error.h"

namespace tamis::server {

std::string_view type_name(const OrderedJson& value) {
  switch (value.type()) {
    case OrderedJson::value_t::null:
      return "null";
    case OrderedJson::value_t::object:
      return "an object";
    case OrderedJson::value_t::array:
      return "an array";
    case OrderedJson::value_t::string:
      return "a string";
    case OrderedJson::value_t::boolean:
      return "a boolean";
    case OrderedJson::value_t::binary:
      return "an integer of more than 64 bits";
    default:
      return "a number";
  }
}

Fields::Fields(const OrderedJson& object, std::string path)
    : object_(object), path_(std::move(path)) {
  if (!object.is_object()) {
    throw ApiError(400,
                   fmt::format("{}: want an object, got {}", path_.empty() ? "the body" : path_,
                               type_name(object)),
                   path_);
  }
}

std::string Fields::path_of(std::string_view key) const {
  return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
}

void Fields::refuse(std::string_view key, const std::string& why) const {
  const std::string path = path_of(key);
  throw ApiError(400, path + ": " + why, path);
}

const OrderedJson* Fields::find(const char* key) {
  known_.emplace_back(key);
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

std::optional<int64_t> Fields::integer(const char* key, int64_t min, int64_t max) {
  const OrderedJson* v = find(key);
  if (v == nullptr) return std::nullopt;
  int64_t value = 0;
  bool fits = v->is_number_integer();
  if (fits) {
    fits = !v->is_number_unsigned() || v->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX);
    value = v->get<int64_t>();
  } else if (v->is_number_float()) {
    // Some clients write every number as a float.
    const double d = v->get<double>();
    fits = std::abs(d) <= 0x1p53 && d == std::floor(d);
    if (fits) value = static_cast<int64_t>(d);
  } else {
    refuse(key, fmt::format("want an integer, got {}", type_name(*v)));
  }
  if (!fits || value < min || value > max) {
    refuse(key, fmt::format("want an integer from {} to {}, got {}", min, max,
                            printable(v->dump(), 40)));
  }
  return value;
}

std::optional<double> Fields::number(const char* key, double min, double max) {
  const OrderedJson* v = find(key);
  if (v == nullptr) return std::nullopt;
  if (!v->is_number()) refuse(key, fmt::format("want a number, got {}", type_name(*v)));
  const double value = v->get<double>();
  if (!(value >= min && value <= max)) {
    refuse(key, fmt::format("want {} to {}, got {}", min, max, printable(v->dump(), 40)));
  }
  return value;
}

std::optional<bool> Fields::flag(const char* key) {
  const OrderedJson* v = find(key);
  if (v == nullptr) return std::nullopt;
  if (!v->is_boolean()) refuse(key, fmt::format("want true or false, got {}", type_name(*v)));
  return v->get<bool>();
}

std::optional<std::string> Fields::text(const char* key) {
  const OrderedJson* v = find(key);
  if (v == nullptr) return std::nullopt;
  if (!v->is_string()) refuse(key, fmt::format("want a string, got {}", type_name(*v)));
  return v->get<std::string>();
}

const OrderedJson* Fields::object(const char* key) {
  const OrderedJson* v = find(key);
  if (v != nullptr && !v->is_object()) {
    refuse(key, fmt::format("want an object, got {}", type_name(*v)));
  }
  return v;
}

const OrderedJson* Fields::array(const char* key) {
  const OrderedJson* v = find(key);
  if (v != nullptr && !v->is_array()) {
    refuse(key, fmt::format("want an array, got {}", type_name(*v)));
  }
  return v;
}

std::vector<std::string> Fields::texts(const char* key, size_t max) {
  const OrderedJson* v = find(key);
  std::vector<std::string> out;
  if (v == nullptr) return out;
  const auto add = [&](const OrderedJson& item, const std::string& where) {
    if (!item.is_string()) refuse(where, fmt::format("want a string, got {}", type_name(item)));
    if (item.get_ref<const std::string&>().empty()) refuse(where, "is empty");
    out.push_back(item.get<std::string>());
  };
  if (!v->is_array()) {
    add(*v, key);
    return out;
  }
  if (v->size() > max) refuse(key, fmt::format("want at most {} strings, got {}", max, v->size()));
  for (const OrderedJson& item : *v) add(item, fmt::format("{}[{}]", key, out.size()));
  return out;
}

void Fields::ignore(std::initializer_list<const char*> keys) {
  for (const char* key : keys) known_.emplace_back(key);
}

void Fields::only(const char* key, const OrderedJson& value) {
  const OrderedJson* v = find(key);
  if (v != nullptr && *v != value) {
    refuse(key, fmt::format("only {} is supported", value.dump()));
  }
}

void Fields::no_others() const {
  for (const auto& [key, value] : object_.items()) {
    // Clients write null for what they leave out.
    if (value.is_null()) continue;
    if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
    const std::string path = printable(path_of(key), 80);
    throw ApiError(400, path + ": is not a field of this request", path, "unknown_parameter");
  }
}

}  // namespace tamis::server
