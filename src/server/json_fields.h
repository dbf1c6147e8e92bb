// Reads the members of a JSON object by name, with types and ranges, and finds those that nobody
// asked for. Every error is an ApiError 400 whose param is the path of the field.
//
//   Fields f(object, "");
//   const auto seed = f.integer("seed", INT64_MIN, INT64_MAX);   // nullopt if absent or null
//   f.ignore({"user"});
//   f.no_others();
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace tamis::server {

class Fields {
 public:
  // The object must outlive this. `path` names it in errors; empty for the body itself.
  Fields(const OrderedJson& object, std::string path);

  // nullptr if the member is absent or null.
  const OrderedJson* find(const char* key);
  std::optional<int64_t> integer(const char* key, int64_t min, int64_t max);
  std::optional<double> number(const char* key, double min, double max);
  std::optional<bool> flag(const char* key);
  std::optional<std::string> text(const char* key);
  const OrderedJson* object(const char* key);
  const OrderedJson* array(const char* key);
  // A string or an array of strings; at most `max` of them, none empty.
  std::vector<std::string> texts(const char* key, size_t max);

  // Members that change nothing here.
  void ignore(std::initializer_list<const char*> keys);
  // A member that is only accepted with this value, which is what Tamis does anyway.
  void only(const char* key, const OrderedJson& value);
  void no_others() const;

  std::string path_of(std::string_view key) const;
  [[noreturn]] void refuse(std::string_view key, const std::string& why) const;

 private:
  const OrderedJson& object_;
  std::string path_;
  std::vector<std::string> known_;
};

// "an object", "a string", ...
std::string_view type_name(const OrderedJson& value);

}  // namespace tamis::server
