#include "text/python_json.h"

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace tamis {
namespace {

// Python's repr of a float: the shortest digits that read back, in fixed notation while the decimal
// exponent is in [-4, 16), and never without a point or an exponent.
void append_float(std::string& out, double value) {
  char digits[64];
  const auto end =
      std::to_chars(digits, digits + sizeof digits, value, std::chars_format::scientific);
  const std::string_view shortest(digits, static_cast<size_t>(end.ptr - digits));
  const int exponent = std::atoi(std::string(shortest.substr(shortest.find('e') + 1)).c_str());
  if (exponent < -4 || exponent >= 16) {
    out += shortest;  // both write at least two digits of exponent
    return;
  }
  char fixed[64];
  const auto stop = std::to_chars(fixed, fixed + sizeof fixed, value, std::chars_format::fixed);
  const std::string_view text(fixed, static_cast<size_t>(stop.ptr - fixed));
  out += text;
  if (text.find('.') == std::string_view::npos) out += ".0";
}

void append_string(std::string& out, std::string_view text) {
  out += '"';
  append_json_escaped(out, text);
  out += '"';
}

void append_value(std::string& out, const OrderedJson& value);

void append_array(std::string& out, const OrderedJson& value) {
  const char* separator = "[";
  for (const OrderedJson& element : value) {
    out += separator;
    append_value(out, element);
    separator = ", ";
  }
  out += value.empty() ? "[]" : "]";
}

void append_object(std::string& out, const OrderedJson& value) {
  const char* separator = "{";
  for (auto it = value.begin(); it != value.end(); ++it) {
    out += separator;
    append_string(out, it.key());
    out += ": ";
    append_value(out, it.value());
    separator = ", ";
  }
  out += value.empty() ? "{}" : "}";
}

// Recursion is bounded by the parser's limit on nesting.
void append_value(std::string& out, const OrderedJson& value) {
  switch (value.type()) {
    case OrderedJson::value_t::object:
      return append_object(out, value);
    case OrderedJson::value_t::array:
      return append_array(out, value);
    case OrderedJson::value_t::string:
      return append_string(out, value.get_ref<const std::string&>());
    case OrderedJson::value_t::number_float:
      return append_float(out, value.get<double>());
    case OrderedJson::value_t::binary: {
      const auto& lexeme = value.get_binary();
      out.append(lexeme.begin(), lexeme.end());
      return;
    }
    default:
      out += value.dump();  // null, true, false and 64-bit integers read the same
  }
}

}  // namespace

void append_json_escaped(std::string& out, std::string_view text) {
  static const char kHex[] = "0123456789abcdef";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (byte >= 0x20) {
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\b') {
      out += "\\b";
    } else if (c == '\f') {
      out += "\\f";
    } else {
      out += {'\\', 'u', '0', '0', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
}

OrderedJson parse_python_json(std::string_view text, const std::string& where,
                              bool allow_duplicate_keys) {
  JsonLimits limits;
  limits.allow_duplicate_keys = allow_duplicate_keys;
  limits.long_integers_as_binary = true;
  limits.max_object_keys = 1024;
  return parse_ordered_json(text, where, limits);
}

std::string python_json_dump(const OrderedJson& value) {
  std::string out;
  append_value(out, value);
  return out;
}

}  // namespace tamis
