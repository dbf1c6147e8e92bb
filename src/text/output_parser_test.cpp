#include "text/output_parser.h"

#include <gtest/gtest.h>

#include <ctime>

#include "base/error.h"
#include "text/completion.h"

namespace tamis {
namespace {

using Kind = OutputEvent::Kind;
using Events = std::vector<OutputEvent>;

Events parse(const OutputParserOptions& options, std::string_view text, size_t step = 0) {
  OutputParser parser(options);
  Events events;
  if (step == 0) step = text.size() + 1;
  for (size_t i = 0; i < text.size(); i += step) parser.push(text.substr(i, step), events);
  parser.finish(events);
  return events;
}

const OutputParserOptions kV31 = {ChatFormat::kV31, false, true};
const OutputParserOptions kV32 = {ChatFormat::kV32, false, true};
const OutputParserOptions kV32Thinking = {ChatFormat::kV32, true, true};

TEST(ReasoningParser, SplitsAtTheEndOfTheThought) {
  EXPECT_EQ(parse(kV32Thinking, "I add.</think>1+1=2"),
            (Events{{Kind::kReasoning, "I add."}, {Kind::kContent, "1+1=2"}}));
  EXPECT_EQ(parse(kV32Thinking, "</think>x"), (Events{{Kind::kContent, "x"}}));
  EXPECT_EQ(parse(kV32Thinking, "<think>a<think>b</think>"),
            (Events{{Kind::kReasoning, "a<think>b"}}));
  EXPECT_EQ(parse(kV32Thinking, "cut </thin"), (Events{{Kind::kReasoning, "cut </thin"}}));
  EXPECT_EQ(parse(kV32Thinking, ""), Events{});
  EXPECT_EQ(parse(kV32, "a</think>b"), (Events{{Kind::kContent, "a</think>b"}}));
}

// TX-12: a call inside a thought is a thought.
TEST(OutputParser, MarkupInsideAThoughtIsNoCall) {
  const std::string dsml =
      "\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"rm\">\n</｜DSML｜invoke>\n"
      "</｜DSML｜function_calls>";
  EXPECT_EQ(parse(kV32Thinking, dsml + "</think>no"),
            (Events{{Kind::kReasoning, dsml}, {Kind::kContent, "no"}}));
  const std::string v31 =
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>rm<｜tool▁sep｜>{}<｜tool▁call▁end｜><"
      "｜tool▁calls▁end｜>";
  EXPECT_EQ(parse({ChatFormat::kV31, true, true}, v31), (Events{{Kind::kReasoning, v31}}));
}

TEST(OutputParser, WithoutToolsMarkupIsText) {
  const std::string text = "<｜tool▁calls▁begin｜>x";
  EXPECT_EQ(parse({ChatFormat::kV31, false, false}, text), (Events{{Kind::kContent, text}}));
}

TEST(V31ToolCalls, ParallelCalls) {
  EXPECT_EQ(parse(kV31,
                  "Look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>{\"x\": 1}"
                  "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>b<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
                  "<｜tool▁calls▁end｜>"),
            (Events{{Kind::kContent, "Look."},
                    {Kind::kToolStart, "a"},
                    {Kind::kToolArguments, "{\"x\": 1}"},
                    {Kind::kToolEnd, ""},
                    {Kind::kToolStart, "b"},
                    {Kind::kToolArguments, "{}"},
                    {Kind::kToolEnd, ""}}));
}

TEST(V31ToolCalls, BrokenMarkup) {
  const std::string begin = "<｜tool▁calls▁begin｜>", call = "<｜tool▁call▁begin｜>",
                    sep = "<｜tool▁sep｜>", end = "<｜tool▁call▁end｜>",
                    close = "<｜tool▁calls▁end｜>";
  const OutputEvent broken = {Kind::kToolBroken, "the call was cut short"};
  EXPECT_EQ(parse(kV31, begin + "junk" + close + "after"),
            (Events{{Kind::kMalformed, "junk"}, {Kind::kContent, "after"}}));
  EXPECT_EQ(parse(kV31, begin + call + "f" + sep + "{"),
            (Events{{Kind::kToolStart, "f"}, {Kind::kToolArguments, "{"}, broken}));
  EXPECT_EQ(parse(kV31, begin + call + "f" + sep + "{" + call + "g" + sep + end),
            (Events{{Kind::kToolStart, "f"},
                    {Kind::kToolArguments, "{"},
                    broken,
                    {Kind::kToolStart, "g"},
                    {Kind::kToolEnd, ""}}));
  EXPECT_EQ(parse(kV31, begin + call + "f" + end), (Events{{Kind::kMalformed, "f"}}));
  EXPECT_EQ(parse(kV31, begin + call + sep + "x" + end), (Events{{Kind::kMalformed, sep + "x"}}));
  EXPECT_EQ(parse(kV31, "a" + end + "b" + sep), (Events{{Kind::kContent, "a" + end + "b" + sep}}));
  EXPECT_EQ(parse(kV31, begin + "<｜tool▁cal"), (Events{{Kind::kMalformed, "<｜tool▁cal"}}));
}

TEST(V31ToolCalls, NamesAreBounded) {
  const std::string begin = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>";
  const std::string longest(256, 'n');
  EXPECT_EQ(parse(kV31, begin + longest + "<｜tool▁sep｜>")[0],
            (OutputEvent{Kind::kToolStart, longest}));
  EXPECT_EQ(parse(kV31, begin + longest + "n<｜tool▁sep｜>")[0],
            (OutputEvent{Kind::kMalformed, longest + "n<｜tool▁sep｜>"}));
}

std::string dsml(const std::string& body) {
  return "\n\n<｜DSML｜function_calls>\n" + body + "</｜DSML｜function_calls>";
}
std::string invoke(const std::string& name, const std::string& parameters) {
  return "<｜DSML｜invoke name=\"" + name + "\">\n" + parameters + "</｜DSML｜invoke>\n";
}
std::string parameter(const std::string& key, const std::string& value, bool text) {
  return "<｜DSML｜parameter name=\"" + key + "\" string=\"" + (text ? "true" : "false") + "\">" +
         value + "</｜DSML｜parameter>\n";
}

TEST(DsmlToolCalls, ParametersBecomeOneObject) {
  const std::string text =
      "Look." + dsml(invoke("get", parameter("city", "San \"F\"\n</think>", true) +
                                       parameter("days", "[3]", false)) +
                     invoke("now", ""));
  EXPECT_EQ(parse(kV32, text),
            (Events{{Kind::kContent, "Look."},
                    {Kind::kToolStart, "get"},
                    {Kind::kToolArguments, R"({"city": "San \"F\"\n</think>", "days": [3]})"},
                    {Kind::kToolEnd, ""},
                    {Kind::kToolStart, "now"},
                    {Kind::kToolArguments, "{}"},
                    {Kind::kToolEnd, ""}}));
}

// A parser that is fed an object as the only text must not invent an "arguments" key.
TEST(DsmlToolCalls, BrokenMarkup) {
  EXPECT_EQ(parse(kV32, dsml(invoke("f", "{\"a\": 1}\n"))),
            (Events{{Kind::kToolStart, "f"},
                    {Kind::kToolBroken, "text where a parameter was expected"},
                    {Kind::kMalformed, "{\"a\": 1}\n"}}));
  const std::string twice = parameter("a", "1", false) + parameter("a", "2", false);
  EXPECT_EQ(parse(kV32, dsml(invoke("f", twice + parameter("b", "3", false)))),
            (Events{{Kind::kToolStart, "f"},
                    {Kind::kToolArguments, "{\"a\": 1, \"b\": 3}"},
                    {Kind::kToolEnd, ""}}));
  EXPECT_EQ(parse(kV32, "<｜DSML｜function_calls><｜DSML｜invoke name=\"f\">"),
            (Events{{Kind::kToolStart, "f"}, {Kind::kToolBroken, "the call was cut short"}}));
  EXPECT_EQ(parse(kV32, "a <｜DSML｜nothing>\n\n<｜DSML｜function"),
            (Events{{Kind::kContent, "a <｜DSML｜nothing>\n\n<｜DSML｜function"}}));
  EXPECT_EQ(parse(kV32, dsml("junk" + invoke("f", "")))[0],
            (OutputEvent{Kind::kMalformed, "junk"}));
}

// An answer that meets max_tokens: no piece of markup is shown as text, wherever the cut is.
TEST(OutputParser, MarkupThatALimitCutIsNoText) {
  const std::string dsml_call =
      "Look." + dsml(invoke("get", parameter("city", "x < y", true) + parameter("n", "3", false)));
  const std::string v31_call =
      "Look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get<｜tool▁sep｜>{\"a\": \"x < y\"}"
      "<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
  for (const auto& [options, text] : {std::pair{kV32, dsml_call}, std::pair{kV31, v31_call}}) {
    for (size_t cut = 0; cut <= text.size(); ++cut) {
      if (cut < text.size() && (text[cut] & 0xC0) == 0x80) continue;  // within a character
      OutputParser parser(options);
      Events events;
      parser.push(text.substr(0, cut), events);
      parser.finish(events, /*cut=*/true);
      std::string shown, arguments;
      for (const OutputEvent& e : events) {
        if (e.kind == Kind::kContent || e.kind == Kind::kMalformed) shown += e.text;
        if (e.kind == Kind::kToolArguments) arguments += e.text;
      }
      const bool fits = std::string("Look.\n\n<").starts_with(shown) || shown == "Look.<";
      EXPECT_TRUE(fits) << cut << ": " << shown;
      EXPECT_EQ(arguments.find("<｜"), std::string::npos) << cut << ": " << arguments;
      EXPECT_EQ(arguments.find("</｜"), std::string::npos) << cut << ": " << arguments;
    }
  }
  OutputParser parser(kV32);  // what may be text stays text
  Events events;
  parser.push("a <", events);
  parser.finish(events, /*cut=*/true);
  EXPECT_EQ(events, (Events{{Kind::kContent, "a <"}}));
}

TEST(DsmlToolCalls, EmptyLinesBeforeTheBlockAreMarkup) {
  for (const char* text : {"", "\n", "\n\n", "\n\n\n", "x\n", "x\n\n"}) {
    const std::string before = text;
    std::string wanted = before;
    if (wanted.size() >= 2 && wanted.substr(wanted.size() - 2) == "\n\n")
      wanted.resize(wanted.size() - 2);
    Events events;
    append_event(events, Kind::kContent, wanted);
    EXPECT_EQ(parse(kV32, before + "<｜DSML｜function_calls></｜DSML｜function_calls>"), events);
  }
}

// T4: one output, every cut into two, and every fixed step.
TEST(OutputParser, EveryCutGivesTheSameEvents) {
  const std::string v31 =
      "a<<｜tool▁calls▁begin｜>\n<｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"k\": "
      "\"<｜\"}<｜tool▁call▁end｜>"
      "junk<｜tool▁call▁begin｜>" +
      std::string(300, 'n') + "<｜tool▁calls▁end｜>b<｜tool▁sep｜>";
  const std::string v32 =
      "<think>t</thin</think>\n\n\n" +
      dsml(invoke("f", parameter("k", "<</｜DSML｜param", true) + parameter("l", "1", false)) +
           "junk</｜DSML｜invoke>" + invoke(std::string(300, 'n'), "") + invoke("g", "x")) +
      "tail\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"h\">\n<｜DSML｜parameter name=\"q";
  const std::pair<OutputParserOptions, std::string> cases[] = {
      {kV31, v31}, {kV32Thinking, v32}, {kV32, v32}};
  for (const auto& [options, text] : cases) {
    const Events whole = parse(options, text);
    for (size_t step = 1; step <= text.size(); ++step) ASSERT_EQ(parse(options, text, step), whole);
    for (size_t cut = 0; cut <= text.size(); ++cut) {
      OutputParser parser(options);
      Events events;
      parser.push(std::string_view(text).substr(0, cut), events);
      parser.push(std::string_view(text).substr(cut), events);
      parser.finish(events);
      ASSERT_EQ(events, whole) << cut;
    }
  }
}

// Of this process, so that a busy machine does not fail the test.
double cpu_seconds(FunctionRef<void()> run) {
  const std::clock_t start = std::clock();
  run();
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

// TX-9 and its likes: 520 kB of markup that never closes, within 0.2 s.
TEST(OutputParser, UnclosedMarkupIsLinear) {
  const auto repeat = [](const std::string& head, const std::string& part) {
    std::string text = head;
    while (text.size() < 520000) text += part;
    return text;
  };
  const std::string dsml_begin = "<｜DSML｜function_calls>";
  const std::pair<ChatFormat, std::string> cases[] = {
      {ChatFormat::kV31, repeat("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>")},
      {ChatFormat::kV31, repeat("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")},
      {ChatFormat::kV31, repeat("", "<｜tool▁calls▁begi")},
      {ChatFormat::kV32, repeat(dsml_begin, "<｜DSML｜invoke name=\"f\">")},
      {ChatFormat::kV32, repeat("", "\n\n<｜DSML｜function_call")},
      {ChatFormat::kV32, repeat("", "\n")},
      {ChatFormat::kV32, repeat(dsml_begin, "<")},
      {ChatFormat::kV32,
       repeat(dsml_begin + "<｜DSML｜invoke name=\"f\"><｜DSML｜parameter name=\"k\" "
                           "string=\"true\">",
              "</｜DSML｜parameter")},
  };
  for (const auto& c : cases) {
    const ChatFormat format = c.first;
    const std::string& text = c.second;
    for (const bool thinking : {false, true}) {
      const double taken = cpu_seconds([&] { parse({format, thinking, true}, text, 7); });
      EXPECT_LT(taken, 0.2) << printable(text, 60);
    }
    const double taken = cpu_seconds([&] {
      EXPECT_THROW(parse_completion(ChatFormat::kV32, false, "\n\n" + text), InputError);
    });
    EXPECT_LT(taken, 0.2) << printable(text, 60);
  }
}

std::string completion_error(ChatFormat format, bool thinking, const std::string& text) {
  try {
    parse_completion(format, thinking, text);
  } catch (const InputError& e) {
    return e.what();
  }
  return "";
}

TEST(Completion, StrictErrorsOfV32) {
  const std::string eos = "<｜end▁of▁sentence｜>";
  const auto error = [&](const std::string& text) {
    return completion_error(ChatFormat::kV32, false, text);
  };
  EXPECT_EQ(error(eos), "");
  EXPECT_EQ(error(dsml(invoke("f", parameter("a", "1", false))) + eos), "");
  EXPECT_EQ(error(dsml(invoke("f", parameter("a", "1", false)))), "");  // as the official parser
  EXPECT_EQ(error(""), "completion: the answer has no end");
  EXPECT_EQ(error(eos + "x"), "completion: text after the end");
  EXPECT_EQ(error("<think>" + eos), "completion: a special token stands in the text: <think>");
  EXPECT_EQ(error(dsml("junk") + eos), "completion: text between calls");
  EXPECT_EQ(error(dsml("") + "x" + eos), "completion: text after the tool calls");
  EXPECT_EQ(error(dsml("<｜DSML｜invoke name=f>\n</｜DSML｜invoke>\n") + eos),
            "completion: the name of a call is malformed");
  EXPECT_EQ(error(dsml(invoke("f", parameter("a", "1", false) + parameter("a", "", true))) + eos),
            "completion: a parameter is repeated");
  EXPECT_EQ(error(dsml(invoke("f", "<｜DSML｜parameter name=\"a\">1</｜DSML｜parameter>\n")) + eos),
            "completion: a parameter is malformed");
  EXPECT_EQ(error(dsml(invoke("f", parameter("a", "1", false) + "x"))),
            "completion: text between parameters");
}

// What the strict parser accepts, the streaming one reads the same.
TEST(Completion, AgreesWithTheStream) {
  const std::string text =
      "r</think>c" + dsml(invoke("f", parameter("a", "x\ty", true) + parameter("b", "{}", false)));
  const Completion strict = parse_completion(ChatFormat::kV32, true, text);
  EXPECT_EQ(parse(kV32Thinking, text),
            (Events{{Kind::kReasoning, strict.reasoning_content},
                    {Kind::kContent, strict.content},
                    {Kind::kToolStart, strict.tool_calls.at(0).name},
                    {Kind::kToolArguments, strict.tool_calls.at(0).arguments},
                    {Kind::kToolEnd, ""}}));
}

TEST(Completion, V31) {
  const std::string text =
      "c<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜><"
      "｜tool▁calls▁end｜>";
  const Completion got = parse_completion(ChatFormat::kV31, true, "r</think>" + text);
  EXPECT_EQ(got.reasoning_content, "r");
  EXPECT_EQ(got.content, "c");
  ASSERT_EQ(got.tool_calls.size(), 1u);
  EXPECT_EQ(got.tool_calls[0].arguments, "{}");
  EXPECT_EQ(completion_error(ChatFormat::kV31, true, "never closes"),
            "completion: the thought has no end");
  EXPECT_EQ(completion_error(ChatFormat::kV31, false, "<｜tool▁calls▁begin｜>junk"),
            "completion: text between tool calls: junk");
}

}  // namespace
}  // namespace tamis
