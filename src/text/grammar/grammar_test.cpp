// Constraints: random texts that they allow are what they promise, by checkers that know nothing of
// them; hostile ones are refused quickly.
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "base/json.h"
#include "text/chat_markers.h"
#include "text/grammar/constraint.h"
#include "text/output_parser.h"

namespace tamis {
namespace {

using Spec = ConstraintSpec;

std::shared_ptr<const TokenTrie> trie() {
  static const auto t = std::make_shared<TokenTrie>(
      Tokenizer::load(TAMIS_SOURCE_DIR "/models/tamis-mini/tokenizer.json"), 8192);
  return t;
}
const Tokenizer& tokenizer() {
  static const Tokenizer t = Tokenizer::load(TAMIS_SOURCE_DIR "/models/tamis-mini/tokenizer.json");
  return t;
}

Spec schema(const std::string& text) {
  Spec s;
  s.answer = Spec::Answer::kSchema;
  s.text = text;
  return s;
}
Spec regex(const std::string& text) {
  Spec s;
  s.answer = Spec::Answer::kRegex;
  s.text = text;
  return s;
}

// A text that ends, drawn token by token. Short tokens become likelier with time, and the end is
// taken as soon as it may be after that, so that texts do not go on for ever.
std::string draw(const std::shared_ptr<Constraint>& c, uint32_t seed, bool* ended = nullptr) {
  std::mt19937 rng(seed);
  Matcher m(c);
  std::string text;
  for (int i = 0; i < 600; ++i) {
    if (m.finished() || (m.accepting() && (rng() % 4 == 0 || i > 60))) {
      if (ended != nullptr) *ended = true;
      return text;
    }
    const auto mask = m.allowed();
    std::vector<int32_t> ids, closing;
    for (int32_t id = 0; id < trie()->vocab_size(); ++id) {
      if ((mask[static_cast<size_t>(id) / 64] >> (id % 64) & 1) == 0) continue;
      ids.push_back(id);
      const std::string b = tokenizer().token_bytes(id);
      if (b == "\"" || b == "}" || b == "]" || b == "<" || b == "</" ||
          !tokenizer().is_ordinary(id)) {
        closing.push_back(id);
      }
    }
    if (ids.empty()) {
      ADD_FAILURE() << "no token may follow, and the text may not end: " << text;
      return text;
    }
    const auto& from = !closing.empty() && i > 25 ? closing : ids;
    const int32_t id = from[rng() % from.size()];
    EXPECT_TRUE(m.accept(id));
    m.commit();
    text += tokenizer().token_bytes(id);
  }
  if (ended != nullptr) *ended = false;
  return text;
}

// Whether a text, as the tokenizer cuts it, is allowed from beginning to end.
bool allows(const Spec& spec, const std::string& text) {
  Matcher m(compile_constraint(spec, trie()));
  for (const int32_t id : tokenizer().encode(text, SpecialTokens::kParse)) {
    const auto mask = m.allowed();
    const bool bit = (mask[static_cast<size_t>(id) / 64] >> (id % 64) & 1) != 0;
    const int32_t mark = m.mark();
    if (bit != m.accept(id)) ADD_FAILURE() << "mask and accept differ at " << id;
    if (!bit) return false;
    const int32_t after = m.mark();
    m.roll_back(mark);
    EXPECT_TRUE(m.accept(id));
    EXPECT_EQ(m.mark(), after);
  }
  return m.accepting();
}

// An independent reading of the schemas that the tests use.
bool valid(const Json& s, const Json& v, const Json& root) {
  if (s.is_boolean()) return s.get<bool>();
  if (s.contains("$ref")) {
    return valid(root.at(Json::json_pointer(s["$ref"].get<std::string>().substr(1))), v, root);
  }
  if (s.contains("anyOf")) {
    bool any = false;
    for (const Json& a : s["anyOf"]) any |= valid(a, v, root);
    if (!any) return false;
  }
  if (s.contains("enum") && std::find(s["enum"].begin(), s["enum"].end(), v) == s["enum"].end()) {
    return false;
  }
  if (s.contains("const") && s["const"] != v) return false;
  if (s.contains("type")) {
    bool any = false;
    for (const Json& t : s["type"].is_array() ? s["type"] : Json::array({s["type"]})) {
      const std::string n = t;
      any |= n == v.type_name() || (n == "integer" && v.is_number_integer()) ||
             (n == "number" && v.is_number());
    }
    if (!any) return false;
  }
  const double x = v.is_number() ? v.get<double>() : 0;
  if (v.is_number()) {
    if (s.contains("minimum") && x < s["minimum"].get<double>()) return false;
    if (s.contains("maximum") && x > s["maximum"].get<double>()) return false;
    if (s.contains("exclusiveMinimum") && x <= s["exclusiveMinimum"].get<double>()) return false;
    if (s.contains("exclusiveMaximum") && x >= s["exclusiveMaximum"].get<double>()) return false;
    if (s.contains("multipleOf") && v.get<int64_t>() % s["multipleOf"].get<int64_t>() != 0) {
      return false;
    }
  }
  if (v.is_string()) {
    size_t n = 0;
    for (const char c : v.get<std::string>()) n += (static_cast<uint8_t>(c) & 0xC0) != 0x80 ? 1 : 0;
    if (s.contains("minLength") && n < s["minLength"].get<size_t>()) return false;
    if (s.contains("maxLength") && n > s["maxLength"].get<size_t>()) return false;
  }
  if (v.is_array()) {
    if (s.contains("minItems") && v.size() < s["minItems"].get<size_t>()) return false;
    if (s.contains("maxItems") && v.size() > s["maxItems"].get<size_t>()) return false;
    for (const Json& i : v) {
      if (s.contains("items") && !valid(s["items"], i, root)) return false;
    }
  }
  if (v.is_object()) {
    for (const Json& r : s.value("required", Json::array())) {
      if (!v.contains(r.get<std::string>())) return false;
    }
    for (const auto& [k, m] : v.items()) {
      if (s.contains("properties") && s["properties"].contains(k)) {
        if (!valid(s["properties"][k], m, root)) return false;
      } else if (s.contains("additionalProperties") && !valid(s["additionalProperties"], m, root)) {
        return false;
      }
    }
  }
  return true;
}

const char* const kSchemas[] = {
    R"({"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer"}},"required":["name","age"],"additionalProperties":false})",
    R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"boolean"},"c":{"type":"null"}},"required":["b"]})",
    R"({"type":"object","properties":{"a":{"enum":[1,"two",null,{"x":[]}]},"b":{"const":"ü\"\\"}}})",
    R"({"type":"array","items":{"type":["string","null"],"maxLength":3,"minLength":1},"minItems":2,"maxItems":4})",
    R"({"type":"number","minimum":0,"maximum":1})",
    R"({"type":"number","exclusiveMinimum":-2.5,"exclusiveMaximum":13.25})",
    R"({"type":"integer","minimum":-17,"maximum":1203})",
    R"({"type":"integer","exclusiveMinimum":99})",
    R"({"type":"integer","maximum":-3})",
    R"({"type":"integer","multipleOf":7})",
    R"({"type":"object","additionalProperties":{"type":"number"}})",
    R"({"$ref":"#/$defs/n","$defs":{"n":{"type":"object","properties":{"v":{"type":"integer"},"next":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},"required":["v","next"],"additionalProperties":false}}})",
    R"({"type":"object","properties":{"c":{"type":"array","items":{"$ref":"#"}}}})",
    R"({"anyOf":[{"type":"string"},{"type":"array","items":{"type":"integer"},"maxItems":3}]})",
    R"({"type":"string","maxLength":2000})",
    R"(true)",
    R"({})"};

TEST(JsonSchema, EveryTextItAllowsIsValid) {
  for (const std::string text : kSchemas) {
    const auto c = compile_constraint(schema(text), trie());
    const Json s = parse_json(text, "schema");
    int ended = 0;
    constexpr int kTexts = 25;
    for (uint32_t seed = 0; seed < kTexts; ++seed) {
      bool whole = false;
      const std::string out = draw(c, seed, &whole);
      if (!whole) continue;
      ++ended;
      JsonLimits twice;
      twice.allow_duplicate_keys = true;
      const Json v = parse_json(out, "answer", twice);
      EXPECT_TRUE(valid(s, v, s)) << text << "\n" << out;
    }
    EXPECT_GT(ended, kTexts / 2) << text;
  }
}

TEST(JsonSchema, AllowsWhatPeopleWrite) {
  const Spec s = schema(kSchemas[0]);
  EXPECT_TRUE(allows(s, R"({"name": "Ada", "age": 36})"));
  EXPECT_TRUE(allows(s, R"({"name":"\u00e9\n","age":-1})"));
  EXPECT_TRUE(allows(s, "{\n  \"name\": \"Zoë 中 😀\",\n  \"age\": 0\n}"));
  EXPECT_FALSE(allows(s, R"({"name": "Ada"})"));
  EXPECT_FALSE(allows(s, R"({"age": 1, "name": "Ada"})"));
  EXPECT_FALSE(allows(s, R"({"name": "Ada", "age": 1.5})"));
  EXPECT_FALSE(allows(s, R"({"name": "Ada", "age": 01})"));
  EXPECT_FALSE(allows(s, R"({"name": "\ud800", "age": 1})"));
  EXPECT_FALSE(allows(s, R"({"name": "Ada", "age": 36} and more)"));
}

TEST(JsonSchema, BoundsAreExact) {
  const auto in = [](const std::string& s, const std::string& n) { return allows(schema(s), n); };
  const std::string unit = R"({"type":"number","minimum":0,"maximum":1})";
  for (const char* n : {"0", "1", "0.5", "0.999", "1.0", "0.0"}) EXPECT_TRUE(in(unit, n)) << n;
  for (const char* n : {"-1", "2", "1.01", "10", "-0.5"}) EXPECT_FALSE(in(unit, n)) << n;
  const std::string range = R"({"type":"integer","minimum":-17,"maximum":1203})";
  for (int n = -30; n <= 1400; n += 7) {
    EXPECT_EQ(in(range, std::to_string(n)), n >= -17 && n <= 1203) << n;
  }
  for (const int n : {-18, -17, -16, -1, 0, 1, 9, 10, 999, 1000, 1203, 1204}) {
    EXPECT_EQ(in(range, std::to_string(n)), n >= -17 && n <= 1203) << n;
  }
  EXPECT_THROW(compile_constraint(schema(R"({"type":"integer","minimum":3,"maximum":2})"), trie()),
               InputError);
}

TEST(JsonSchema, FormatsAndPatterns) {
  const auto fits = [](const std::string& key, const std::string& text) {
    return allows(schema(R"({"type":"string",)" + key + "}"), Json(text).dump());
  };
  EXPECT_TRUE(fits(R"("format":"uuid")", "01234567-89ab-cdef-0123-456789abcdef"));
  EXPECT_FALSE(fits(R"("format":"uuid")", "01234567"));
  EXPECT_TRUE(fits(R"("format":"date-time")", "2025-12-24T18:30:00Z"));
  EXPECT_FALSE(fits(R"("format":"date")", "2025-13-01"));
  EXPECT_TRUE(fits(R"("format":"ipv4")", "192.168.0.255"));
  EXPECT_FALSE(fits(R"("format":"ipv4")", "256.1.1.1"));
  EXPECT_TRUE(fits(R"("format":"email")", "a.b@example.org"));
  EXPECT_TRUE(fits(R"("pattern":"^(?:foo|bar)baz$")", "foobaz"));
  EXPECT_FALSE(fits(R"("pattern":"^(?:foo|bar)baz$")", "xfoobaz"));
  EXPECT_TRUE(fits(R"("pattern":"b+")", "abbc"));
  EXPECT_FALSE(fits(R"("pattern":"b+")", "ac"));
  EXPECT_TRUE(fits(R"("pattern":"^\"[^a]$")", "\"\n"));
  EXPECT_TRUE(fits(R"("pattern":"(a+)+b")", "aaab"));
}

TEST(Regex, Matches) {
  EXPECT_TRUE(allows(regex("[a-c]{2,3}|x"), "abc"));
  EXPECT_FALSE(allows(regex("[a-c]{2,3}"), "a"));
  EXPECT_FALSE(allows(regex("[a-c]{2,3}"), "abca"));
  EXPECT_TRUE(allows(regex("\\d{3}-\\w+\\s?"), "123-ab "));
  EXPECT_TRUE(allows(regex("[^\\d]+\\u00e9?."), "xyz"));
  EXPECT_TRUE(allows(regex("(a*)*b{0,2000}"), "aabbb"));
  EXPECT_TRUE(allows(regex("(a?){0,5}c"), "aac"));
  EXPECT_TRUE(allows(regex("[]a]+"), "]a"));
  EXPECT_FALSE(allows(regex("(a?){0,5}c"), "aaaaaac"));
}

TEST(Constraint, HostileOnesAreRefusedQuickly) {
  const auto refused = [](const Spec& s, const std::string& says) {
    const auto begin = std::chrono::steady_clock::now();
    try {
      compile_constraint(s, trie());
      ADD_FAILURE() << "accepted: " << s.text.substr(0, 80);
    } catch (const InputError& e) {
      EXPECT_NE(std::string(e.what()).find(says), std::string::npos) << e.what();
    }
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(500));
  };
  const auto deep = [](size_t n) { return std::string(n, '(') + "a" + std::string(n, ')'); };
  refused(regex(deep(60000)), "limit");
  refused(regex(deep(1000)), "groups");
  refused(regex("(?<=x)*"), "(?");
  refused(regex("*"), "nothing");
  refused(regex("["), "class");
  refused(regex("(a"), "without");
  refused(regex("a)"), "without");
  refused(regex("\\1"), "escape");
  refused(regex("a\\b"), "escape");
  refused(regex("a**"), "repetition");
  refused(regex("((a{1000}){1000}){1000}"), "repetitions");
  refused(regex("a{1,"), "{n,m}");
  std::string nested_plus = "a?";
  for (int i = 0; i < 60; ++i) nested_plus = "(" + nested_plus + ")+";
  refused(regex(nested_plus), "too large");
  refused(schema(R"({"type":"kaboom"})"), "type");
  refused(schema(R"({"type":123})"), "type");
  refused(schema(R"(123)"), "schema");
  refused(schema(R"({"$ref":"#"})"), "itself");
  refused(schema(R"({"$ref":"#/nowhere"})"), "nowhere");
  refused(schema(R"({"$ref":"file:///etc/passwd"})"), "within the schema");
  refused(schema(R"({"anyOf":[{"$ref":"#"},{"type":"null"}]})"), "itself");
  refused(schema(R"({"type":"object","properties":{"c":{"$ref":"#"}},"required":["c"]})"),
          "finite");
  refused(schema(R"({"type":"object","patternProperties":{}})"), "patternProperties");
  refused(schema(R"({"oneOf":[]})"), "oneOf");
  refused(schema(R"({"type":"string","format":"colour"})"), "colour");
  refused(schema(R"({"type":"string","maxLength":-1})"), "maxLength");
  refused(schema(R"({"type":"object","required":["x"]})"), "required");
  refused(schema(std::string(100, '[')), "schema");
  std::string nested = "true";
  for (int i = 0; i < 100; ++i) nested = R"({"type":"array","items":)" + nested + "}";
  refused(schema(nested), "schema");
}

// 16 ways on 16 levels that look alike: refused, or followed within bounds.
TEST(Constraint, BranchingIsBounded) {
  std::string defs;
  for (int level = 0; level < 16; ++level) {
    std::string ways;
    for (int way = 0; way < 16; ++way) {
      ways += std::string(way > 0 ? "," : "") +
              R"({"type":"object","properties":{"a":{"$ref":"#/$defs/l)" +
              std::to_string(level + 1) + R"("},"w)" + std::to_string(way) +
              R"(":{"type":"null"}},"required":["a"]})";
    }
    defs += "\"l" + std::to_string(level) + "\":{\"anyOf\":[" + ways + "]},";
  }
  const Spec s =
      schema("{\"$ref\":\"#/$defs/l0\",\"$defs\":{" + defs + "\"l16\":{\"type\":\"null\"}}}");
  const auto begin = std::chrono::steady_clock::now();
  try {
    Matcher m(compile_constraint(s, trie()));
    for (int i = 0; i < 16; ++i) {
      m.allowed();
      for (const int32_t id : tokenizer().encode("{\"a\":", SpecialTokens::kPlain)) m.accept(id);
    }
    ADD_FAILURE() << "followed 16^16 ways";
  } catch (const InputError& e) {
    EXPECT_NE(std::string(e.what()).find("ambiguous"), std::string::npos);
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

// Few places at a time, but nearly every token leads to states of its own: bounded by work. And a
// harmless one that resembles it.
TEST(Constraint, TheWorkForOneMaskIsBounded) {
  const auto allowed = [](const std::string& pattern) {
    Matcher m(compile_constraint(regex(pattern), trie()));
    m.allowed();
    for (int i = 0; i < 3; ++i) {
      for (const int32_t id : tokenizer().encode("ab", SpecialTokens::kPlain)) m.accept(id);
      m.allowed();
    }
  };
  const auto begin = std::chrono::steady_clock::now();
  for (const char* pattern : {".*[a-m].{50}", "(.{0,9}[aceg]){2}.*[a-m].{40}",
                              "(abNc*)+[^xype\":\"o-z]{2,4}\\d\\u060e9?"}) {
    try {
      allowed(pattern);
    } catch (const InputError& e) {
      EXPECT_NE(std::string(e.what()).find("more than"), std::string::npos) << e.what();
    }
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(8));
  EXPECT_NO_THROW(allowed("[a-z]*"));
}

// More states than a table holds: a new one takes over in the middle of a text.
TEST(Constraint, TablesAreRenewed) {
  const auto c = compile_constraint(regex("(ab|cd){6000}"), trie());
  Matcher m(c);
  std::mt19937 rng(1);
  const auto ab = tokenizer().encode("ab", SpecialTokens::kPlain);
  const auto cd = tokenizer().encode("cd", SpecialTokens::kPlain);
  for (int i = 0; i < 6000; ++i) {
    ASSERT_FALSE(m.accepting());
    for (const int32_t id : rng() % 2 == 0 ? ab : cd) ASSERT_TRUE(m.accept(id)) << i;
    m.commit();
  }
  EXPECT_TRUE(m.finished());
}

ToolSpec tool(const std::string& name, const std::string& parameters) {
  return {name, "", parameters, "", /*strict=*/true};
}

// Thinking x tools x formats x answers: what is drawn parses, and the calls are declared and valid.
TEST(Constraint, MatrixOfThinkingToolsAndFormats) {
  const std::string weather =
      R"({"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer","minimum":1,"maximum":9},"unit":{"enum":["C","F"]}},"required":["city","unit"],"additionalProperties":false})";
  const std::vector<ToolSpec> tools{tool("weather", weather),
                                    tool("stop_now", R"({"type":"object","properties":{}})")};
  for (const bool thinking : {false, true}) {
    for (const ChatFormat format : {ChatFormat::kV31, ChatFormat::kV32}) {
      for (const auto mode : {Spec::Tools::kFree, Spec::Tools::kAuto, Spec::Tools::kRequired}) {
        for (const bool json : {false, true}) {
          Spec s = json ? schema(kSchemas[0]) : Spec{};
          s.tools = mode;
          s.format = format;
          s.declared = tools;
          s.in_thinking = thinking;
          s.parallel = false;
          const auto c = compile_constraint(s, trie());
          if (c == nullptr) {
            EXPECT_TRUE(!json && mode == Spec::Tools::kFree);
            continue;
          }
          for (uint32_t seed = 0; seed < 6; ++seed) {
            bool whole = false;
            const std::string text = draw(c, seed, &whole);
            if (!whole) continue;
            OutputParser parser({format, thinking, true});
            std::vector<OutputEvent> events;
            for (const char ch : text) parser.push({&ch, 1}, events);
            parser.finish(events);
            std::string content, name, arguments;
            int calls = 0;
            for (const OutputEvent& e : events) {
              using Kind = OutputEvent::Kind;
              EXPECT_NE(e.kind, Kind::kToolBroken) << text;
              EXPECT_NE(e.kind, Kind::kMalformed) << text;
              if (e.kind == Kind::kContent) content += e.text;
              if (e.kind == Kind::kToolStart) name = e.text;
              if (e.kind == Kind::kToolArguments) arguments += e.text;
              calls += e.kind == Kind::kToolEnd ? 1 : 0;
            }
            EXPECT_TRUE(mode != Spec::Tools::kRequired || calls == 1) << text;
            EXPECT_TRUE(mode != Spec::Tools::kFree || calls == 0) << text;
            if (calls > 0) {
              ASSERT_TRUE(name == "weather" || name == "stop_now") << text;
              const Json v = parse_json(arguments, "arguments");
              const Json want = name == "weather" ? parse_json(weather, "w") : Json::object();
              EXPECT_TRUE(valid(want, v, want)) << text;
            } else if (json) {
              const Json want = parse_json(kSchemas[0], "s");
              EXPECT_TRUE(valid(want, parse_json(content, "answer"), want)) << text;
            }
          }
        }
      }
    }
  }
}

TEST(Constraint, ToolsMustBeDeclaredWell) {
  Spec s;
  s.tools = Spec::Tools::kRequired;
  EXPECT_THROW(compile_constraint(s, trie()), InputError);
  s.declared = {tool("t", R"({"type":"string"})")};
  EXPECT_THROW(compile_constraint(s, trie()), InputError);
  s.declared = {tool("t", R"({"type":"object","properties":{"x":{"type":"sound"}}})")};
  for (const ChatFormat f : {ChatFormat::kV31, ChatFormat::kV32}) {
    s.format = f;
    EXPECT_THROW(compile_constraint(s, trie()), InputError);
  }
  s.format = ChatFormat::kV31Plain;
  s.declared = {tool("t", "")};
  EXPECT_THROW(compile_constraint(s, trie()), InputError);
}

// The cost of a mask: new states, and states that were met before.
TEST(Constraint, MasksAreCheapOnceKnown) {
  const auto c = compile_constraint(schema(kSchemas[0]), trie());
  for (uint32_t seed = 0; seed < 5; ++seed) draw(c, seed);
  const auto ids =
      tokenizer().encode(R"({"name": "Ada Lovelace", "age": 36})", SpecialTokens::kPlain);
  Matcher(c).allowed();
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 200; ++i) {
    Matcher m(c);
    for (const int32_t id : ids) {
      m.allowed();
      ASSERT_TRUE(m.accept(id));
    }
  }
  const double us =
      std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
  const double each = us / (200.0 * static_cast<double>(ids.size()));
  RecordProperty("us_per_token", std::to_string(each));
  std::printf("%.2f us a token\n", each);
  EXPECT_LT(each, 100);
}

}  // namespace
}  // namespace tamis
