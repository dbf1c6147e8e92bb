#include "text/grammar/constraint.h"

#include <deque>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/chat_markers.h"
#include "text/grammar/json_schema.h"
#include "text/grammar/regex.h"

namespace tamis {
namespace {

using Expr = GrammarBuilder::Expr;

constexpr size_t kMaxTools = 128;
constexpr std::string_view kMarkers[] = {
    chat::kThinkEnd,    chat::kToolCallsBegin, chat::kToolCallsEnd, chat::kToolCallBegin,
    chat::kToolCallEnd, chat::kToolSep,        chat::kDsml};

class ConstraintCompiler {
 public:
  ConstraintCompiler(const ConstraintSpec& spec, const TokenTrie& trie)
      : spec_(spec), trie_(trie) {}

  std::shared_ptr<const Grammar> compile() {
    Expr all = body();
    if (spec_.in_thinking) all = b_.until(symbols(chat::kThinkEnd), all, false);
    return b_.finish(all);
  }

 private:
  // The symbols of a text of the chat format: its markers where the tokenizer has them as tokens.
  std::vector<int32_t> symbols(std::string_view text) {
    std::vector<int32_t> out;
    while (!text.empty()) {
      size_t taken = 0;
      for (const std::string_view m : kMarkers) {
        if (!text.starts_with(m)) continue;
        const auto token = trie_.added(m);
        if (!token) continue;
        out.push_back(b_.marker_symbol(*token));
        taken = m.size();
      }
      if (taken == 0) {
        out.push_back(static_cast<uint8_t>(text[0]));
        taken = 1;
      }
      text.remove_prefix(taken);
    }
    return out;
  }
  Expr markup(std::string_view text) {
    std::vector<Expr> parts;
    for (const int32_t s : symbols(text)) parts.push_back(b_.range(s, s));
    return b_.sequence(std::move(parts));
  }

  Expr body() {
    if (spec_.tools == ConstraintSpec::Tools::kFree) return answer();
    if (spec_.declared.empty()) throw InputError("tools: none is declared");
    if (spec_.declared.size() > kMaxTools) {
      throw InputError("tools: more than " + std::to_string(kMaxTools));
    }
    const bool dsml = spec_.format == ChatFormat::kV32;
    if (spec_.format == ChatFormat::kV31Plain) {
      throw InputError("tools: this model's chat format has none");
    }
    const std::string_view opening = dsml ? kBlock : chat::kToolCallsBegin;
    const Expr calls = dsml ? dsml_calls() : v31_calls();
    const Expr gap = dsml ? b_.optional(b_.bytes("\n\n")) : b_.empty();
    const Expr block = b_.sequence({gap, markup(opening), calls});
    if (spec_.tools == ConstraintSpec::Tools::kRequired) return block;
    if (spec_.answer != ConstraintSpec::Answer::kText) return b_.any_of({answer(), block});
    return b_.until(symbols(opening), calls, /*may_stop=*/true);
  }

  Expr answer() {
    const OrderedJson any = true;
    switch (spec_.answer) {
      case ConstraintSpec::Answer::kText:
        return b_.star(b_.range(0, 255));
      case ConstraintSpec::Answer::kJsonObject:
        return SchemaCompiler(b_, any, "response_format").any_object();
      case ConstraintSpec::Answer::kSchema: {
        const OrderedJson& schema = keep(parse_schema(spec_.text, "schema"));
        return SchemaCompiler(b_, schema, "schema").value(schema, "");
      }
      case ConstraintSpec::Answer::kRegex:
        return regex_grammar(b_, spec_.text, {}, "regex");
    }
    return b_.empty();
  }

  const OrderedJson& keep(OrderedJson json) { return kept_.emplace_back(std::move(json)); }

  Expr repeated(Expr one) { return spec_.parallel ? b_.sequence({one, b_.star(one)}) : one; }

  struct Parameters {
    std::unique_ptr<SchemaCompiler> compiler;
    const OrderedJson* schema;
    bool free;  // nothing is said about them
  };
  Parameters parameters_of(const ToolSpec& tool) {
    const std::string where = "tool '" + printable(tool.name) + "': parameters";
    const bool held = tool.strict && !tool.parameters_json.empty();
    const OrderedJson& root =
        keep(held ? parse_schema(tool.parameters_json, where) : OrderedJson::object());
    Parameters p{std::make_unique<SchemaCompiler>(b_, root, where), nullptr, false};
    p.schema = &p.compiler->resolve(root, "");
    if (!p.schema->is_object()) throw InputError(where + ": want a schema of an object");
    if (p.schema->contains("type") && (*p.schema)["type"] != "object") {
      throw InputError(where + ": type: want object");
    }
    p.free = !p.schema->contains("type") && !p.schema->contains("properties");
    return p;
  }

  // NAME<sep>ARGUMENTS, one after the other.
  Expr v31_calls() {
    std::vector<Expr> tools;
    for (const ToolSpec& tool : spec_.declared) {
      const Parameters p = parameters_of(tool);
      const Expr arguments = p.free ? p.compiler->any_object() : p.compiler->value(*p.schema, "");
      tools.push_back(b_.sequence({b_.bytes(tool.name), markup(chat::kToolSep), arguments}));
    }
    const Expr call = b_.sequence(
        {markup(chat::kToolCallBegin), b_.any_of(std::move(tools)), markup(chat::kToolCallEnd)});
    return b_.sequence({repeated(call), markup(chat::kToolCallsEnd)});
  }

  Expr dsml_calls() {
    std::vector<Expr> tools;
    for (const ToolSpec& tool : spec_.declared) {
      tools.push_back(b_.sequence({b_.bytes(tool.name), markup("\">\n"), dsml_parameters(tool)}));
    }
    const Expr call = b_.sequence({markup("<｜DSML｜invoke name=\""), b_.any_of(std::move(tools)),
                                   markup("</｜DSML｜invoke>\n")});
    return b_.sequence({repeated(call), markup("</｜DSML｜function_calls>")});
  }

  Expr dsml_parameters(const ToolSpec& tool) {
    const Parameters p = parameters_of(tool);
    if (p.free || !p.schema->contains("properties")) {
      const Expr name = regex_grammar(b_, "[A-Za-z0-9_-]{1,64}", {}, "name");
      const Expr value = b_.any_of({raw_string(), json_value(p.compiler->any_value())});
      return b_.star(b_.sequence({markup("<｜DSML｜parameter name=\""), name, value}));
    }
    // The compiler's own checks of properties and required.
    p.compiler->value(*p.schema, "");
    std::vector<Expr> parts;
    for (const auto& [name, schema] : (*p.schema)["properties"].items()) {
      const Expr one =
          b_.sequence({markup("<｜DSML｜parameter name=\"" + name),
                       dsml_value(*p.compiler, schema, "/properties/" + printable(name), 0)});
      bool required = false;
      if (p.schema->contains("required")) {
        for (const auto& r : (*p.schema)["required"]) required |= r == name;
      }
      parts.push_back(required ? one : b_.optional(one));
    }
    return b_.sequence(std::move(parts));
  }

  Expr json_value(Expr json) {
    return b_.sequence({markup("\" string=\"false\">"), json, markup(kParameterEnd)});
  }
  Expr raw(Expr text) {
    return b_.sequence({markup("\" string=\"true\">"), text, markup(kParameterEnd)});
  }
  Expr raw_string() {
    return b_.sequence(
        {markup("\" string=\"true\">"), b_.until(symbols(kParameterEnd), b_.empty(), false)});
  }

  // Strings as they stand, everything else as JSON.
  Expr dsml_value(SchemaCompiler& c, const OrderedJson& given, const std::string& path, int depth) {
    const OrderedJson& s = c.resolve(given, path);
    const Expr json = json_value(c.value(s, path));
    if (!s.is_object() || depth > 16) return json;
    std::vector<Expr> parts;
    if (s.contains("anyOf") && s["anyOf"].is_array()) {
      for (const auto& a : s["anyOf"]) parts.push_back(dsml_value(c, a, path, depth + 1));
      return b_.any_of(std::move(parts));
    }
    if (s.contains("enum") || s.contains("const")) {
      const OrderedJson values = s.contains("enum") ? s["enum"] : OrderedJson::array({s["const"]});
      for (const auto& v : values) {
        parts.push_back(v.is_string() ? raw(b_.bytes(v.get<std::string>()))
                                      : json_value(b_.bytes(v.dump())));
      }
      return b_.any_of(std::move(parts));
    }
    if (!s.contains("type")) {
      return s.empty() || s.contains("description") ? b_.any_of({raw_string(), json}) : json;
    }
    const OrderedJson types = s["type"].is_array() ? s["type"] : OrderedJson::array({s["type"]});
    OrderedJson others = OrderedJson::array();
    for (const auto& t : types) {
      if (t != "string") others.push_back(t);
    }
    if (others.size() < types.size()) {
      const bool plain = !s.contains("pattern") && !s.contains("format") &&
                         !s.contains("minLength") && !s.contains("maxLength");
      parts.push_back(plain ? raw_string() : raw(c.plain_string(s, path)));
    }
    if (!others.empty()) {
      OrderedJson rest = s;
      rest["type"] = others;
      parts.push_back(json_value(c.value(keep(std::move(rest)), path)));
    }
    return b_.any_of(std::move(parts));
  }

  static constexpr std::string_view kBlock = "<｜DSML｜function_calls>\n";
  static constexpr std::string_view kParameterEnd = "</｜DSML｜parameter>\n";

  const ConstraintSpec& spec_;
  const TokenTrie& trie_;
  GrammarBuilder b_;
  std::deque<OrderedJson> kept_;  // the compilers know schemas by their address
};

}  // namespace

std::shared_ptr<Constraint> compile_constraint(const ConstraintSpec& spec,
                                               std::shared_ptr<const TokenTrie> trie) {
  if (spec.answer == ConstraintSpec::Answer::kText && spec.tools == ConstraintSpec::Tools::kFree) {
    return nullptr;
  }
  auto grammar = ConstraintCompiler(spec, *trie).compile();
  return std::make_shared<Constraint>(std::move(grammar), std::move(trie));
}

}  // namespace tamis
