#include "text/grammar/json_schema.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/grammar/json_numbers.h"
#include "text/grammar/regex.h"

namespace tamis {
namespace {

using Expr = GrammarBuilder::Expr;

constexpr int64_t kMaxRules = 20000, kMaxSchemaBytes = 256 << 10;
constexpr int64_t kMaxLength = 1000000;
constexpr int32_t kIndent = 40;
constexpr int64_t kMaxDivisor = 100;

// They say nothing about what is valid.
constexpr std::string_view kNotes[] = {
    "title",      "description", "default",   "examples", "$schema",     "$id",    "$comment",
    "deprecated", "readOnly",    "writeOnly", "$defs",    "definitions", "strict", "name"};

constexpr std::pair<std::string_view, std::string_view> kFormats[] = {
    {"date", "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"},
    {"time",
     "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9]"
     ")"},
    {"date-time",
     "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
     "(\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"},
    {"duration",
     "P([0-9]{1,4}W|[0-9]{1,4}D(T[0-9]{1,4}H([0-9]{1,4}M([0-9]{1,4}S)?)?)?|"
     "T[0-9]{1,4}(H([0-9]{1,4}M([0-9]{1,4}S)?)?|M([0-9]{1,4}S)?|S))"},
    {"email",
     "[A-Za-z0-9_+-]{1,32}(\\.[A-Za-z0-9_+-]{1,16}){0,2}@[A-Za-z0-9]([A-Za-z0-9-]{0,30}"
     "[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?){1,3}"},
    {"hostname",
     "[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?"
     "(\\.[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?){0,4}"},
    {"ipv4",
     "((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}"
     "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"},
    {"ipv6", "([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}"},
    {"uuid", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"}};

std::string type_name(const OrderedJson& v) {
  if (v.is_number_integer()) return "integer";
  if (v.is_number()) return "number";
  return v.type_name();
}

}  // namespace

class SchemaCompiler::Impl {
 public:
  Impl(GrammarBuilder& b, const OrderedJson& root, std::string where)
      : b_(b), root_(root), where_(std::move(where)) {}

  Expr value(const OrderedJson& schema, const std::string& path);
  Expr any_value();
  Expr any_object();
  const OrderedJson& resolve(const OrderedJson& schema, const std::string& path) const;
  Expr plain_string(const OrderedJson& schema, const std::string& path);

 private:
  [[noreturn]] void fail(const std::string& path, const std::string& what) const {
    throw InputError(where_ + ": " + (path.empty() ? "" : path + ": ") + what);
  }
  Expr body(const OrderedJson& schema, const std::string& path);
  Expr of_type(const OrderedJson& schema, const std::string& type, const std::string& path);
  Expr one_of_values(const OrderedJson& schema, const OrderedJson& values, const std::string& path);
  Expr alternatives(const OrderedJson& schema, const std::string& path);
  Expr object(const OrderedJson& schema, const std::string& path);
  Expr properties(const OrderedJson& schema, const std::string& path);
  Expr members(std::vector<std::pair<Expr, bool>> all);
  Expr map_of(Expr value);
  Expr array(const OrderedJson& schema, const std::string& path);
  Expr number(const OrderedJson& schema, bool integer, const std::string& path);
  Expr string_text(const OrderedJson& schema, RegexText text, const std::string& path);
  std::vector<std::string> types(const OrderedJson& schema, const std::string& path) const;
  void know(const OrderedJson& schema, std::initializer_list<std::string_view> keys,
            const std::string& path) const;
  int32_t count(const OrderedJson& schema, const char* key, int64_t otherwise,
                const std::string& path) const;

  // Whitespace as people and models write it, but never without end.
  Expr space() {
    if (!space_) {
      space_ =
          b_.rule(b_.any_of({b_.empty(), b_.bytes(" "),
                             b_.sequence({b_.bytes("\n"), b_.repeat(b_.bytes(" "), 0, kIndent)})}));
    }
    return *space_;
  }
  Expr character(RegexText text) {
    auto& c = text == RegexText::kJson ? json_character_ : plain_character_;
    if (!c) {
      c = b_.rule(text == RegexText::kJson ? json_character(b_)
                                           : b_.code_points({{1, '<' - 1}, {'<' + 1, 0x10FFFF}}));
    }
    return *c;
  }
  Expr quoted(Expr inside) { return b_.sequence({b_.bytes("\""), inside, b_.bytes("\"")}); }
  Expr key(const std::string& name) {
    return b_.sequence({b_.bytes(OrderedJson(name).dump() + ":"), b_.optional(b_.bytes(" "))});
  }
  Expr comma() { return b_.sequence({b_.bytes(","), space()}); }

  GrammarBuilder& b_;
  const OrderedJson& root_;
  std::string where_;
  std::map<const OrderedJson*, int32_t> rules_;
  std::optional<Expr> space_, json_character_, plain_character_, any_value_, any_object_;
};

void SchemaCompiler::Impl::know(const OrderedJson& schema,
                                std::initializer_list<std::string_view> keys,
                                const std::string& path) const {
  for (const auto& [k, v] : schema.items()) {
    const bool note = std::find(std::begin(kNotes), std::end(kNotes), k) != std::end(kNotes);
    if (!note && std::find(keys.begin(), keys.end(), k) == keys.end()) {
      fail(path, "the keyword '" + printable(k) + "' is not supported here");
    }
  }
}

int32_t SchemaCompiler::Impl::count(const OrderedJson& schema, const char* key, int64_t otherwise,
                                    const std::string& path) const {
  if (!schema.contains(key)) return static_cast<int32_t>(otherwise);
  const OrderedJson& v = schema[key];
  const bool whole =
      v.is_number_integer() ||
      (v.is_number_float() && v.get<double>() == static_cast<double>(static_cast<int64_t>(
                                                     std::clamp(v.get<double>(), -1.0, 1e9))));
  if (!whole || v.get<double>() < 0 || v.get<double>() > kMaxLength) {
    fail(path, std::string(key) + ": want a whole number of 0 to " + std::to_string(kMaxLength));
  }
  return static_cast<int32_t>(v.get<double>());
}

const OrderedJson& SchemaCompiler::Impl::resolve(const OrderedJson& schema,
                                                 const std::string& path) const {
  const OrderedJson* at = &schema;
  for (int hops = 0; at->is_object() && at->contains("$ref"); ++hops) {
    if (hops > 100) fail(path, "$ref: refers to itself");
    know(*at, {"$ref"}, path);
    const OrderedJson& ref = (*at)["$ref"];
    if (!ref.is_string()) fail(path, "$ref: want a string");
    const auto target = ref.get<std::string>();
    if (target.empty() || target[0] != '#') {
      fail(path,
           "$ref: only references within the schema, '#/...', not '" + printable(target) + "'");
    }
    try {
      const OrderedJson::json_pointer pointer(target.substr(1));
      if (!root_.contains(pointer)) fail(path, "$ref: there is no '" + printable(target) + "'");
      at = &root_.at(pointer);
    } catch (const nlohmann::json::exception&) {
      fail(path, "$ref: '" + printable(target) + "' is no place in the schema");
    }
  }
  return *at;
}

// Each schema is one rule, so that references cost nothing and may go round.
Expr SchemaCompiler::Impl::value(const OrderedJson& schema, const std::string& path) {
  const OrderedJson& s = resolve(schema, path);
  if (const auto it = rules_.find(&s); it != rules_.end()) return b_.call(it->second);
  if (b_.rules() > kMaxRules) fail(path, "the schema is too large");
  const int32_t rule = b_.declare();
  rules_.emplace(&s, rule);
  b_.define(rule, body(s, path));
  return b_.call(rule);
}

std::vector<std::string> SchemaCompiler::Impl::types(const OrderedJson& schema,
                                                     const std::string& path) const {
  static constexpr std::string_view kAll[] = {"object",  "array",   "string", "number",
                                              "integer", "boolean", "null"};
  std::vector<std::string> out;
  const OrderedJson& t = schema["type"];
  for (const OrderedJson& one : t.is_array() ? t : OrderedJson::array({t})) {
    if (!one.is_string() ||
        std::find(std::begin(kAll), std::end(kAll), one.get<std::string>()) == std::end(kAll)) {
      fail(path, "type: want object, array, string, number, integer, boolean or null, got " +
                     printable(one.dump(-1, ' ', false, OrderedJson::error_handler_t::replace)));
    }
    out.push_back(one.get<std::string>());
  }
  if (out.empty()) fail(path, "type: an empty list");
  return out;
}

Expr SchemaCompiler::Impl::body(const OrderedJson& schema, const std::string& path) {
  if (schema.is_boolean()) {
    if (!schema.get<bool>()) fail(path, "the schema 'false' allows nothing");
    return any_value();
  }
  if (!schema.is_object()) fail(path, std::string("want a schema, got ") + schema.type_name());
  if (schema.contains("const")) {
    know(schema, {"const", "type"}, path);
    return one_of_values(schema, OrderedJson::array({schema["const"]}), path);
  }
  if (schema.contains("enum")) {
    know(schema, {"enum", "type"}, path);
    return one_of_values(schema, schema["enum"], path);
  }
  if (schema.contains("anyOf")) return alternatives(schema, path);
  if (!schema.contains("type")) {
    if (schema.contains("properties") || schema.contains("additionalProperties")) {
      return of_type(schema, "object", path);
    }
    if (schema.contains("items")) return of_type(schema, "array", path);
    if (schema.contains("pattern")) return of_type(schema, "string", path);
    know(schema, {}, path);
    return any_value();
  }
  const auto all = types(schema, path);
  // A keyword must belong to one of the types, or it was meant for something else.
  know(schema,
       {"type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems",
        "pattern", "format", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum",
        "exclusiveMaximum", "multipleOf"},
       path);
  std::vector<Expr> parts;
  for (const std::string& type : all) parts.push_back(of_type(schema, type, path));
  return b_.any_of(std::move(parts));
}

Expr SchemaCompiler::Impl::of_type(const OrderedJson& schema, const std::string& type,
                                   const std::string& path) {
  if (type == "object") return object(schema, path);
  if (type == "array") return array(schema, path);
  if (type == "string") return quoted(string_text(schema, RegexText::kJson, path));
  if (type == "boolean") return b_.any_of({b_.bytes("true"), b_.bytes("false")});
  if (type == "null") return b_.bytes("null");
  return number(schema, type == "integer", path);
}

Expr SchemaCompiler::Impl::one_of_values(const OrderedJson& schema, const OrderedJson& values,
                                         const std::string& path) {
  if (!values.is_array() || values.empty()) fail(path, "enum: want a list of values");
  std::vector<std::string> allowed;
  if (schema.contains("type")) allowed = types(schema, path);
  std::vector<Expr> parts;
  for (const OrderedJson& v : values) {
    const std::string t = type_name(v);
    const bool fits = allowed.empty() || std::any_of(allowed.begin(), allowed.end(), [&](auto& a) {
                        return a == t || (a == "number" && t == "integer");
                      });
    if (fits) parts.push_back(b_.bytes(v.dump()));
  }
  if (parts.empty()) fail(path, "enum: none of the values has the type");
  return b_.any_of(std::move(parts));
}

Expr SchemaCompiler::Impl::alternatives(const OrderedJson& schema, const std::string& path) {
  know(schema, {"anyOf"}, path);
  const OrderedJson& all = schema["anyOf"];
  if (!all.is_array() || all.empty()) fail(path, "anyOf: want a list of schemas");
  std::vector<Expr> parts;
  std::vector<std::string> seen;
  for (size_t i = 0; i < all.size(); ++i) {
    // The same again adds nothing but ambiguity.
    std::string text = all[i].dump();
    if (std::find(seen.begin(), seen.end(), text) != seen.end()) continue;
    seen.push_back(std::move(text));
    parts.push_back(value(all[i], path + "/anyOf/" + std::to_string(i)));
  }
  return b_.any_of(std::move(parts));
}

Expr SchemaCompiler::Impl::map_of(Expr v) {
  const Expr pair = b_.sequence(
      {quoted(b_.star(character(RegexText::kJson))), b_.bytes(":"), b_.optional(b_.bytes(" ")), v});
  return b_.sequence(
      {b_.bytes("{"), space(),
       b_.optional(b_.sequence({pair, b_.star(b_.sequence({comma(), pair})), space()})),
       b_.bytes("}")});
}

Expr SchemaCompiler::Impl::object(const OrderedJson& schema, const std::string& path) {
  const bool free = !schema.contains("properties") || schema["properties"].empty();
  if (free && schema.contains("required") && !schema["required"].empty()) {
    fail(path, "required: names a property that 'properties' does not have");
  }
  if (!free) return properties(schema, path);
  if (!schema.contains("additionalProperties")) return any_object();
  const OrderedJson& more = schema["additionalProperties"];
  if (more.is_boolean() && !more.get<bool>()) {
    return b_.sequence({b_.bytes("{"), space(), b_.bytes("}")});
  }
  return map_of(value(more, path + "/additionalProperties"));
}

// Declared properties only, in their order. More may be allowed; none need be written.
Expr SchemaCompiler::Impl::properties(const OrderedJson& schema, const std::string& path) {
  const OrderedJson& all = schema["properties"];
  if (!all.is_object()) fail(path, "properties: want an object");
  std::vector<std::string> required;
  if (schema.contains("required")) {
    if (!schema["required"].is_array()) fail(path, "required: want a list of names");
    for (const OrderedJson& r : schema["required"]) {
      if (!r.is_string()) fail(path, "required: want a list of names");
      if (!all.contains(r.get<std::string>())) {
        fail(path, "required: names '" + printable(r.get<std::string>()) +
                       "', which 'properties' does not have");
      }
      required.push_back(r.get<std::string>());
    }
  }
  std::vector<std::pair<Expr, bool>> list;
  for (const auto& [name, s] : all.items()) {
    const bool need = std::find(required.begin(), required.end(), name) != required.end();
    list.emplace_back(b_.sequence({key(name), value(s, path + "/properties/" + printable(name))}),
                      need);
  }
  return members(std::move(list));
}

// rest[i]: what may follow when one of the first i has been written; first[i]: when none has.
Expr SchemaCompiler::Impl::members(std::vector<std::pair<Expr, bool>> all) {
  Expr rest = b_.empty();
  std::optional<Expr> first;
  bool may_be_empty = true;
  for (auto m = all.rbegin(); m != all.rend(); ++m) {
    const auto& [e, need] = *m;
    const Expr from_here = b_.sequence({e, rest});
    std::vector<Expr> starts{from_here}, follows{b_.sequence({comma(), from_here})};
    if (!need) {
      if (first) starts.push_back(*first);
      follows.push_back(rest);
    }
    may_be_empty = may_be_empty && !need;
    first = b_.rule(b_.any_of(std::move(starts)));
    rest = b_.rule(b_.any_of(std::move(follows)));
  }
  const Expr inside = b_.sequence({*first, space()});
  return b_.sequence(
      {b_.bytes("{"), space(), may_be_empty ? b_.optional(inside) : inside, b_.bytes("}")});
}

Expr SchemaCompiler::Impl::array(const OrderedJson& schema, const std::string& path) {
  const int32_t min = count(schema, "minItems", 0, path);
  const int32_t max = count(schema, "maxItems", GrammarBuilder::kUnbounded, path);
  if (min > max) fail(path, "minItems is above maxItems");
  const Expr item =
      schema.contains("items") ? value(schema["items"], path + "/items") : any_value();
  const Expr none = b_.sequence({b_.bytes("["), space(), b_.bytes("]")});
  if (max == 0) return none;
  const int32_t more = max == GrammarBuilder::kUnbounded ? max : max - 1;
  const Expr items = b_.sequence(
      {item, b_.repeat(b_.sequence({comma(), item}), std::max(min - 1, 0), more), space()});
  return b_.sequence(
      {b_.bytes("["), space(), min == 0 ? b_.optional(items) : items, b_.bytes("]")});
}

Expr SchemaCompiler::Impl::number(const OrderedJson& schema, bool integer,
                                  const std::string& path) {
  NumberBounds bounds;
  const auto read = [&](const char* key, std::optional<Decimal>& bound, bool& open, bool is_open) {
    if (!schema.contains(key)) return;
    if (bound) fail(path, std::string(key) + ": there is another bound on this side");
    if (!schema[key].is_number()) fail(path, std::string(key) + ": want a number");
    std::string text = schema[key].dump();
    bound = parse_decimal(text);
    if (!bound) fail(path, std::string(key) + ": too many digits");
    open = is_open;
  };
  read("minimum", bounds.low, bounds.open_low, false);
  read("exclusiveMinimum", bounds.low, bounds.open_low, true);
  read("maximum", bounds.high, bounds.open_high, false);
  read("exclusiveMaximum", bounds.high, bounds.open_high, true);
  try {
    if (schema.contains("multipleOf")) {
      const OrderedJson& m = schema["multipleOf"];
      if (bounds.bounded()) fail(path, "multipleOf: not supported together with bounds");
      if (!m.is_number_integer() || m.get<double>() < 1 || m.get<double>() > kMaxDivisor) {
        fail(path, "multipleOf: want a whole number of 1 to " + std::to_string(kMaxDivisor));
      }
      return json_multiple(b_, m.get<int64_t>());
    }
    return integer ? json_integer(b_, bounds) : json_number(b_, bounds);
  } catch (const InputError& e) {
    if (std::string_view(e.what()).starts_with(where_)) throw;
    fail(path, e.what());
  }
}

Expr SchemaCompiler::Impl::string_text(const OrderedJson& schema, RegexText text,
                                       const std::string& path) {
  const int32_t min = count(schema, "minLength", 0, path);
  const int32_t max = count(schema, "maxLength", GrammarBuilder::kUnbounded, path);
  if (min > max) fail(path, "minLength is above maxLength");
  const bool sized = schema.contains("minLength") || schema.contains("maxLength");
  std::string_view pattern;
  std::string given;
  if (schema.contains("format")) {
    const OrderedJson& f = schema["format"];
    if (!f.is_string()) fail(path, "format: want a string");
    for (const auto& [name, p] : kFormats) {
      if (f == name) pattern = p;
    }
    if (pattern.empty()) {
      fail(path, "format: '" + printable(f.get<std::string>()) + "' is not supported");
    }
  }
  const bool format = !pattern.empty();
  if (schema.contains("pattern")) {
    if (!schema["pattern"].is_string()) fail(path, "pattern: want a string");
    if (format) fail(path, "pattern: not supported together with format");
    given = schema["pattern"].get<std::string>();
    pattern = given;
  }
  if (!schema.contains("pattern") && !format) return b_.repeat(character(text), min, max);
  if (sized) fail(path, "minLength and maxLength: not supported together with pattern or format");
  return b_.rule(regex_grammar(b_, pattern, {text, !format}, where_ + ": " + path + ": pattern"));
}

Expr SchemaCompiler::Impl::plain_string(const OrderedJson& schema, const std::string& path) {
  return string_text(schema, RegexText::kPlain, path);
}

Expr SchemaCompiler::Impl::any_value() {
  if (any_value_) return *any_value_;
  const int32_t rule = b_.declare();
  any_value_ = b_.call(rule);
  const Expr list =
      b_.sequence({*any_value_, b_.star(b_.sequence({comma(), *any_value_})), space()});
  b_.define(rule,
            b_.any_of({any_object(), quoted(b_.star(character(RegexText::kJson))),
                       json_number(b_, {}), b_.bytes("true"), b_.bytes("false"), b_.bytes("null"),
                       b_.sequence({b_.bytes("["), space(), b_.optional(list), b_.bytes("]")})}));
  return *any_value_;
}

Expr SchemaCompiler::Impl::any_object() {
  if (any_object_) return *any_object_;
  const int32_t rule = b_.declare();
  any_object_ = b_.call(rule);
  b_.define(rule, map_of(any_value()));
  return *any_object_;
}

SchemaCompiler::SchemaCompiler(GrammarBuilder& b, const OrderedJson& root, std::string where)
    : impl_(std::make_unique<Impl>(b, root, std::move(where))) {}
SchemaCompiler::~SchemaCompiler() = default;
Expr SchemaCompiler::value(const OrderedJson& s, const std::string& p) {
  return impl_->value(s, p);
}
Expr SchemaCompiler::any_value() { return impl_->any_value(); }
Expr SchemaCompiler::any_object() { return impl_->any_object(); }
const OrderedJson& SchemaCompiler::resolve(const OrderedJson& s, const std::string& p) const {
  return impl_->resolve(s, p);
}
Expr SchemaCompiler::plain_string(const OrderedJson& s, const std::string& p) {
  return impl_->plain_string(s, p);
}

OrderedJson parse_schema(std::string_view text, const std::string& where) {
  if (static_cast<int64_t>(text.size()) > kMaxSchemaBytes) {
    throw InputError(where + ": a schema of " + std::to_string(text.size()) +
                     " bytes, the limit is " + std::to_string(kMaxSchemaBytes));
  }
  JsonLimits limits;
  limits.max_depth = 64;
  limits.max_object_keys = 2000;
  return parse_ordered_json(text, where, limits);
}

}  // namespace tamis
