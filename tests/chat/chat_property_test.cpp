// Properties of the chat code that hold for any input.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <functional>
#include <iostream>

#include "text/chat.h"
#include "text/output_parser.h"

namespace tamis {
namespace {

using Events = std::vector<OutputEvent>;

// Model output: mostly fragments of the markup, some of them cut, in any order.
std::string any_output() {
  static const std::vector<std::string> kFragments = {
      "<think>",
      "</think>",
      "\n",
      "\n\n",
      " ",
      "a",
      "{\"k\": 1}",
      "\"",
      "<",
      "</",
      "é",
      "｜",
      "<｜tool▁calls▁begin｜>",
      "<｜tool▁call▁begin｜>",
      "<｜tool▁sep｜>",
      "<｜tool▁call▁end｜>",
      "<｜tool▁calls▁end｜>",
      "<｜tool▁",
      "<｜DSML｜function_calls>",
      "\n\n<｜DSML｜function_calls>\n",
      "</｜DSML｜function_calls>",
      "<｜DSML｜invoke name=\"",
      "f\">\n",
      "</｜DSML｜invoke>\n",
      "<｜DSML｜parameter name=\"",
      "k\" string=\"true\">",
      "l\" string=\"false\">",
      "</｜DSML｜parameter>\n",
      "<｜DSML｜",
      "<｜end▁of▁sentence｜>",
      "<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"k\" string=\"true\">v"
      "</｜DSML｜parameter>\n</｜DSML｜invoke>\n",
      "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
      std::string(200, 'n')};
  const auto count = *rc::gen::inRange<size_t>(0, 25);
  std::string text;
  for (size_t i = 0; i < count; ++i) {
    const std::string& fragment = *rc::gen::elementOf(kFragments);
    const bool cut = *rc::gen::inRange(0, 8) == 0;
    text += cut ? fragment.substr(0, *rc::gen::inRange<size_t>(0, fragment.size())) : fragment;
  }
  return text;
}

OutputParserOptions any_options() {
  OutputParserOptions options;
  options.format = *rc::gen::element(ChatFormat::kV31, ChatFormat::kV32);
  options.in_thinking = *rc::gen::arbitrary<bool>();
  return options;
}

Events parse(const OutputParserOptions& options, const std::vector<std::string_view>& pieces) {
  OutputParser parser(options);
  Events events;
  for (const std::string_view piece : pieces) parser.push(piece, events);
  parser.finish(events);
  return events;
}

std::string text_of(const Events& events) {
  std::string text;
  for (const OutputEvent& event : events) {
    if (event.kind != OutputEvent::Kind::kToolBroken) text += event.text;
  }
  return text;
}

// What is left of a text without the bytes that markup and the space around it are made of.
std::string without_markup_bytes(const std::string& text) {
  static const std::string kMarkup =
      "<｜tool▁calls▁begin｜><｜tool▁call▁end｜><｜tool▁sep｜></think> \t\r\n";
  std::string left;
  for (const char c : text) {
    if (kMarkup.find(c) == std::string::npos) left += c;
  }
  return left;
}

bool property(const char* what, const std::function<void()>& holds, int cases = 2000) {
  rc::detail::TestParams params;
  params.maxSuccess = cases;
  rc::detail::TestMetadata metadata;
  metadata.description = what;
  const auto result = rc::detail::checkTestable(holds, metadata, params);
  rc::detail::printResultMessage(result, std::cerr);
  return result.is<rc::detail::SuccessResult>();
}

TEST(OutputParserProperty, AnyCutsGiveTheSameEvents) {
  EXPECT_TRUE(property("cuts", [] {
    const std::string text = any_output();
    const OutputParserOptions options = any_options();
    std::vector<std::string_view> pieces;
    for (std::string_view rest = text; !rest.empty();) {
      const size_t size = *rc::gen::inRange<size_t>(1, std::min<size_t>(rest.size(), 40) + 1);
      pieces.push_back(rest.substr(0, size));
      rest.remove_prefix(size);
    }
    RC_ASSERT(parse(options, pieces) == parse(options, {text}));
  }));
}

TEST(OutputParserProperty, EveryByteCutGivesTheSameEvents) {
  EXPECT_TRUE(property(
      "byte cuts",
      [] {
        const std::string text = any_output();
        const OutputParserOptions options = any_options();
        const Events whole = parse(options, {text});
        for (size_t cut = 0; cut <= text.size(); ++cut) {
          const std::string_view all = text;
          RC_ASSERT(parse(options, {all.substr(0, cut), all.substr(cut)}) == whole);
        }
      },
      10000));
}

TEST(OutputParserProperty, NothingButMarkupIsLost) {
  EXPECT_TRUE(property("loss", [] {
    const std::string text = any_output();
    OutputParserOptions options = any_options();
    options.format = ChatFormat::kV31;
    const Events events = parse(options, {text});
    RC_ASSERT(without_markup_bytes(text_of(events)) == without_markup_bytes(text));
  }));
}

TEST(OutputParserProperty, CallsAreWellFormedSequences) {
  EXPECT_TRUE(property("order", [] {
    bool open = false;
    for (const OutputEvent& event : parse(any_options(), {any_output()})) {
      using Kind = OutputEvent::Kind;
      if (event.kind == Kind::kToolStart) {
        RC_ASSERT(!open);
        open = true;
      } else if (event.kind == Kind::kToolEnd || event.kind == Kind::kToolBroken) {
        RC_ASSERT(open);
        open = false;
      } else {
        RC_ASSERT(open == (event.kind == Kind::kToolArguments));
      }
    }
    RC_ASSERT(!open);
  }));
}

// The format's markers do not depend on what users write, and the pieces are the text.
TEST(ChatProperty, SpecialPiecesDoNotDependOnUserText) {
  EXPECT_TRUE(property("pieces", [] {
    std::vector<ChatMessage> messages;
    const auto count = *rc::gen::inRange<size_t>(0, 8);
    for (size_t i = 0; i < count; ++i) {
      ChatMessage message;
      message.role = *rc::gen::element(ChatRole::kSystem, ChatRole::kUser, ChatRole::kAssistant);
      message.has_content = true;
      message.content = "x" + any_output();
      message.reasoning_content = "y" + any_output();
      messages.push_back(message);
    }
    std::vector<ChatMessage> neutral = messages;
    for (ChatMessage& m : neutral) m.content = m.reasoning_content = "x";
    RenderOptions options;
    options.thinking = *rc::gen::arbitrary<bool>();
    const ChatFormat format = *rc::gen::element(ChatFormat::kV31, ChatFormat::kV31Plain,
                                                ChatFormat::kV32Exp, ChatFormat::kV32);
    std::string specials, neutral_specials, text;
    for (const PromptPiece& p : render_pieces(format, messages, options)) {
      if (p.special) specials += p.text;
      text += p.text;
    }
    for (const PromptPiece& p : render_pieces(format, neutral, options)) {
      if (p.special) neutral_specials += p.text;
    }
    RC_ASSERT(specials == neutral_specials);
    RC_ASSERT(text == render_chat(format, messages, options));
  }));
}

}  // namespace
}  // namespace tamis
