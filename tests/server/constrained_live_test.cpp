// Answers that are held to a form, through the API: thinking x form x tools x streaming x format.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "convert/folders.h"
#include "server/live.h"
#include "support/fewer_cases.h"

namespace tamis::server {
namespace {

// What a client has put together from an answer or from its stream.
struct Got {
  std::string content, reasoning, finish;
  std::vector<std::pair<std::string, std::string>> calls;  // name, arguments
  friend bool operator==(const Got&, const Got&) = default;
};

void add_text(const Json& from, const char* key, std::string& to) {
  if (from.contains(key) && from[key].is_string()) to += from[key].get<std::string>();
}

Got whole(const std::string& answer) {
  Got g;
  EXPECT_EQ(status_of(answer), 200) << answer;
  if (status_of(answer) != 200) return g;
  const Json choice = parse_json(body_of(answer), "answer")["choices"][0];
  g.finish = choice["finish_reason"].get<std::string>();
  add_text(choice["message"], "content", g.content);
  add_text(choice["message"], "reasoning_content", g.reasoning);
  if (!choice["message"].contains("tool_calls")) return g;
  for (const Json& c : choice["message"]["tool_calls"]) {
    g.calls.emplace_back(c["function"]["name"].get<std::string>(),
                         c["function"]["arguments"].get<std::string>());
  }
  return g;
}

Got streamed(const std::string& answer) {
  Got g;
  EXPECT_EQ(status_of(answer), 200) << answer;
  for (const std::string& data : events_of(answer)) {
    if (data == "[DONE]") break;
    const Json choice = parse_json(data, "event")["choices"][0];
    add_text(choice, "finish_reason", g.finish);
    const Json& delta = choice["delta"];
    add_text(delta, "content", g.content);
    add_text(delta, "reasoning_content", g.reasoning);
    if (!delta.contains("tool_calls")) continue;
    for (const Json& c : delta["tool_calls"]) {
      const auto index = c["index"].get<size_t>();
      if (index == g.calls.size()) g.calls.emplace_back(c["function"]["name"], "");
      g.calls.at(index).second += c["function"]["arguments"].get<std::string>();
    }
  }
  return g;
}

const std::string kSchema =
    R"({"type":"object","properties":{"city":{"enum":["Oslo","Rome"]},"days":{"type":"integer","minimum":1,"maximum":14}},"required":["city","days"],"additionalProperties":false})";
const std::string kTools =
    R"("tools":[{"type":"function","function":{"name":"weather","strict":true,"parameters":)" +
    kSchema +
    R"(}},{"type":"function","function":{"name":"stop","strict":true,"parameters":{"type":"object","properties":{},"additionalProperties":false}}}])";

bool fits_schema(const std::string& text) {
  const Json v = parse_json(text, "answer");
  return v.is_object() && v.size() == 2 && (v["city"] == "Oslo" || v["city"] == "Rome") &&
         v["days"].is_number_integer() && v["days"] >= 1 && v["days"] <= 14;
}

struct Form {
  const char* name;
  std::string member;
  bool (*fits)(const std::string& text);
};
const Form kForms[] = {
    {"text", "", [](const std::string&) { return true; }},
    {"schema",
     R"("response_format":{"type":"json_schema","json_schema":{"name":"trip","strict":true,"schema":)" +
         kSchema + "}},",
     fits_schema},
    {"flat", R"("response_format":{"type":"json_schema","schema":)" + kSchema + "},", fits_schema},
    {"regex", R"("response_format":{"type":"regex","pattern":"(yes|no), [0-9]{3}"},)",
     [](const std::string& t) {
       return (t.starts_with("yes, ") || t.starts_with("no, ")) &&
              t.find_first_of("0123456789") + 3 == t.size();
     }},
    {"choice", R"("structured_outputs":{"choice":["a+b","c"]},)",
     [](const std::string& t) { return t == "a+b" || t == "c"; }},
};

void expect_calls(const Got& g, const std::string& choice) {
  for (const auto& [name, arguments] : g.calls) {
    EXPECT_TRUE(name == "weather" || (name == "stop" && choice != "named")) << name;
    EXPECT_TRUE(name == "weather" ? fits_schema(arguments)
                                  : parse_json(arguments, "arguments").empty())
        << arguments;
  }
}

class ConstrainedMatrix : public ::testing::TestWithParam<ChatFormat> {};

TEST_P(ConstrainedMatrix, MatrixOfThinkingFormsToolsAndStreaming) {
  Live live({}, {}, GetParam());
  // A bias ends the thought at once; what comes then is held to the form all the same.
  const std::string common =
      R"("messages":[{"role":"user","content":"Where to?"}],"max_tokens":300,"temperature":1,"logit_bias":{"8182":100},"parallel_tool_calls":false)";
  const std::pair<const char*, std::string> choices[] = {
      {"none", R"(,"tool_choice":"none")"},
      {"auto", ""},
      {"required", R"(,"tool_choice":"required")"},
      {"named", R"(,"tool_choice":{"type":"function","function":{"name":"weather"}})"},
  };
  const int every = fewer(1, 5), first = fewer(0, 1);
  int cell = 0;
  for (const bool thinking : {false, true}) {
    for (const Form& form : kForms) {
      for (const auto& [choice, member] : choices) {
        // Where tools must be called, the form of the answer has no part.
        const bool must =
            choice == std::string_view("required") || choice == std::string_view("named");
        if (must && &form > &kForms[1]) continue;
        if (cell++ % every != first) continue;
        const std::string body = "{" + form.member + kTools + member + "," + common +
                                 ",\"thinking\":" + (thinking ? "true" : "false") + ",\"seed\":3";
        const Got a = whole(ask(live, "/v1/chat/completions", body + "}"));
        const Got b = streamed(ask(live, "/v1/chat/completions", body + ",\"stream\":true}"));
        const std::string what = std::string(form.name) + " " + choice + "\n" + body;
        EXPECT_EQ(a, b) << what << "\n" << a.content << "\n" << b.content;
        EXPECT_EQ(a.reasoning, "") << what;
        const std::string_view kind = choice;
        if (must) {
          EXPECT_EQ(a.calls.size(), 1U) << what << a.content;
          EXPECT_EQ(a.content, "") << what;
        }
        if (kind == "none") {
          EXPECT_TRUE(a.calls.empty()) << what;
        }
        expect_calls(a, choice);
        if (!a.calls.empty()) {
          EXPECT_EQ(a.finish, "tool_calls") << what;
        } else if (form.name != std::string_view("text")) {
          EXPECT_EQ(a.finish, "stop") << what << a.content;
          EXPECT_TRUE(form.fits(a.content)) << what << "\n" << a.content;
        }
      }
    }
  }
  EXPECT_TRUE(live.settles());
}

INSTANTIATE_TEST_SUITE_P(Formats, ConstrainedMatrix,
                         ::testing::Values(ChatFormat::kV31, ChatFormat::kV32),
                         [](const auto& p) { return p.param == ChatFormat::kV31 ? "V31" : "V32"; });

// The bundled model with its last layer in the place of a layer that guesses ahead.
class GuessingModel {
 public:
  GuessingModel() {
    const std::string from = TAMIS_SOURCE_DIR "/models/tamis-mini", to = path();
    std::filesystem::copy(from, to);
    Json config = parse_json(read_text_file(from + "/config.json", 1 << 20), "config");
    config["num_hidden_layers"] = 3;
    config["num_nextn_predict_layers"] = 1;
    std::ofstream(to + "/config.json") << config.dump();
    const std::string index_name = "/model.safetensors.index.json";
    Json index = parse_json(read_text_file(from + index_name, 1 << 20), "index");
    // Norms of ones; embedding and hidden state are added.
    constexpr size_t kHidden = 256;
    constexpr uint16_t kOne = 0x3f80;  // in bf16
    const std::vector<uint16_t> ones(kHidden, kOne);
    std::vector<uint16_t> joins(kHidden * 2 * kHidden, 0);
    for (size_t i = 0; i < kHidden; ++i) {
      joins[i * 2 * kHidden + i] = joins[i * 2 * kHidden + kHidden + i] = kOne;
    }
    Json header;
    std::string data;
    const auto add = [&](const std::string& name, const Json& shape, const auto& values) {
      const std::string full = "model.layers.3." + name + ".weight";
      const size_t begin = data.size();
      data.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof kOne);
      header[full] = {{"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
      index["weight_map"][full] = "guess.safetensors";
    };
    for (const char* norm : {"enorm", "hnorm", "shared_head.norm"}) add(norm, {kHidden}, ones);
    add("eh_proj", {kHidden, 2 * kHidden}, joins);
    index["metadata"]["total_size"] = index["metadata"]["total_size"].get<size_t>() + data.size();
    std::ofstream(to + index_name) << index.dump();
    const std::string text = header.dump();
    const uint64_t size = text.size();
    std::ofstream(to + "/guess.safetensors", std::ios::binary)
        << std::string(reinterpret_cast<const char*>(&size), sizeof size) << text << data;
  }
  std::string path() const { return folder_.path("model"); }

 private:
  convert_test::TemporaryFolder folder_;
};

// Thoughts, forms, tools, streaming and guesses at once: the answers are those without guesses.
TEST(ConstrainedLive, GuessingAheadChangesNoAnswer) {
  const GuessingModel model;
  const LiveEngine plain{model.path(), true};
  const LiveEngine guessing{model.path(), true, [](EngineOptions& o) { o.speculative_tokens = 3; }};
  const int every = fewer(1, 5);
  int cell = 0;
  for (const ChatFormat format : {ChatFormat::kV31, ChatFormat::kV32}) {
    Live alone({}, {}, format, 0, plain), ahead({}, {}, format, 0, guessing);
    for (const bool thinking : {false, true}) {
      for (const Form* form : {&kForms[0], &kForms[1], &kForms[3]}) {
        for (const char* choice : {"none", "auto", "required"}) {
          if (choice == std::string_view("required") && form > &kForms[1]) continue;
          if (cell++ % every != 0) continue;
          const char* sampling = thinking == (format == ChatFormat::kV31) ? "0" : "1";
          const std::string body =
              "{" + form->member + kTools + R"(,"tool_choice":")" + choice +
              R"(","messages":[{"role":"user","content":"Where to?"}],"max_tokens":32,"seed":5)" +
              R"(,"logit_bias":{"8182":9},"temperature":)" + sampling +
              ",\"thinking\":" + (thinking ? "true" : "false");
          const Got want = whole(ask(alone, "/v1/chat/completions", body + "}"));
          const Got got = whole(ask(ahead, "/v1/chat/completions", body + "}"));
          EXPECT_EQ(got, want) << body;
          EXPECT_EQ(streamed(ask(ahead, "/v1/chat/completions", body + R"(,"stream":true})")), want)
              << body;
          if (got.finish != "length") expect_calls(got, choice);
        }
      }
    }
    EXPECT_TRUE(alone.settles());
    EXPECT_TRUE(ahead.settles());
    const SpeculationStats s = ahead.engine().gauges().speculation;
    EXPECT_GT(s.accepted, 0);
    EXPECT_LT(s.accepted, s.tokens);
  }
}

// The thought itself is free, and its tokens are no part of the form.
TEST(ConstrainedLive, ThoughtsAreFree) {
  Live live;
  const Got g = whole(ask(
      live, "/v1/chat/completions",
      R"({"messages":[{"role":"user","content":"Hello"}],"thinking":true,"max_tokens":12,"response_format":{"type":"json_object"}})"));
  EXPECT_GT(g.reasoning.size(), 5U);
  EXPECT_NE(g.reasoning[0], '{');
  EXPECT_TRUE(g.content.empty() || g.content[0] == '{') << g.content;
}

TEST(ConstrainedLive, CompletionsAndSeveralAnswersAreHeldToo) {
  Live live;
  const std::string answer = ask(
      live, "/v1/completions",
      R"({"prompt":"Say it:","n":3,"temperature":1,"seed":1,"max_tokens":40,"guided_regex":"[a-c]{4}x"})");
  ASSERT_EQ(status_of(answer), 200) << answer;
  const Json choices = parse_json(body_of(answer), "answer")["choices"];
  ASSERT_EQ(choices.size(), 3U);
  for (const Json& c : choices) {
    const auto text = c["text"].get<std::string>();
    EXPECT_EQ(text.find_first_not_of("abc"), 4U) << text;
    EXPECT_EQ(text.size(), 5U) << text;
    EXPECT_EQ(c["finish_reason"], "stop");
  }
}

// The expression is plain at its start and too ambiguous later: the sender's fault, found late.
TEST(ConstrainedLive, WhatTurnsOutTooAmbiguousIsTheSendersError) {
  Live live;
  const auto body = [](bool stream) {
    return std::string(R"({"prompt":"a","max_tokens":80,"stream":)") + (stream ? "true" : "false") +
           R"(,"guided_regex":"a{40}(([a-z ]{0,20}){0,20}){0,100}"})";
  };
  const std::string answer = ask(live, "/v1/completions", body(false));
  EXPECT_EQ(status_of(answer), 400) << answer;
  const Json error = parse_json(body_of(answer), "answer")["error"];
  EXPECT_EQ(error["param"], "guided_regex") << error.dump();
  EXPECT_EQ(error["code"], "constraint_too_complex");
  EXPECT_NE(error["message"].get<std::string>().find("more than"), std::string::npos);
  const auto events = events_of(ask(live, "/v1/completions", body(true)));
  ASSERT_GT(events.size(), 1U);
  EXPECT_EQ(parse_json(events.back(), "event")["error"]["type"], "invalid_request_error");
  EXPECT_EQ(status_of(ask(live, "/v1/completions", R"({"prompt":"a","max_tokens":2})")), 200);
  EXPECT_TRUE(live.settles());
}

TEST(ConstrainedLive, WhatCannotBeHeldToIsRefusedByName) {
  Live live({}, {}, ChatFormat::kV32);
  const auto refused = [&](const std::string& member, const std::string& param,
                           const std::string& says) {
    const std::string body =
        R"({"messages":[{"role":"user","content":"Hi"}],"max_tokens":4,)" + member + "}";
    const std::string answer = ask(live, "/v1/chat/completions", body);
    ASSERT_EQ(status_of(answer), 400) << body << answer;
    const Json error = parse_json(body_of(answer), "answer")["error"];
    EXPECT_EQ(error["param"], param) << error.dump();
    EXPECT_NE(error["message"].get<std::string>().find(says), std::string::npos) << error.dump();
  };
  const auto of_schema = [](const std::string& schema) {
    return R"("response_format":{"type":"json_schema","json_schema":{"schema":)" + schema + "}}";
  };
  const std::string field = "response_format.json_schema.schema";
  refused(of_schema(R"({"type":"object","patternProperties":{}})"), field, "patternProperties");
  refused(of_schema(R"({"type":"kaboom"})"), field, "type");
  refused(of_schema("123"), field, "schema");
  refused(of_schema(R"({"$ref":"file:///etc/passwd"})"), field, "within the schema");
  refused(R"("response_format":{"type":"json_schema"})", "response_format.json_schema", "missing");
  refused(R"("response_format":{"type":"xml"})", "response_format.type", "want text");
  refused(R"("response_format":{"type":"regex","pattern":"(a"})", "response_format.pattern", "')'");
  refused(R"("guided_regex":"a","guided_json":{})", "guided_regex", "already given");
  refused(R"("grammar":"root ::= root")", "grammar", "not a field");
  refused(R"("tool_choice":"required")", "tool_choice", "no tool");
  refused(kTools + R"(,"tool_choice":"always")", "tool_choice", "want none");
  refused(kTools + R"(,"tool_choice":{"type":"function","function":{"name":"rain"}})",
          "tool_choice", "'rain'");
  refused(R"("tools":[{"type":"function","function":{"name":"a b","parameters":{}}}])", "tools",
          "want a name");
  // A strict tool is held to its schema, which must then be known; another one's is for the model.
  const std::string odd = R"("parameters":{"type":"object","properties":{},"minProperties":1}}}])";
  refused(R"("tools":[{"type":"function","function":{"name":"t","strict":true,)" + odd, "tools",
          "minProperties");
  const std::string lax = R"({"messages":[{"role":"user","content":"Hi"}],"max_tokens":4,)"
                          R"("tools":[{"type":"function","function":{"name":"t",)" +
                          odd + "}";
  EXPECT_EQ(status_of(ask(live, "/v1/chat/completions", lax)), 200);
}

}  // namespace
}  // namespace tamis::server
