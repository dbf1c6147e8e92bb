// The chat formats against the texts that DeepSeek's own encoder and templates rendered.
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "text/chat.h"
#include "text/completion.h"

namespace tamis {
namespace {

std::vector<std::string> case_files() {
  std::vector<std::string> files = {TAMIS_SOURCE_DIR "/tests/golden/chat/chat_cases.json"};
  const char* further = std::getenv("TAMIS_FIXTURES");
  if (further != nullptr) files.push_back(std::string(further) + "/chat/chat_cases.json");
  return files;
}

OrderedJson read_cases(const std::string& path) {
  return parse_ordered_json(read_text_file(path, 1 << 24), path);
}

RenderOptions options_of(const OrderedJson& render) {
  RenderOptions options;
  options.thinking =
      render.value("thinking", false) || render.value("thinking_mode", std::string()) == "thinking";
  options.add_generation_prompt = render.value("add_generation_prompt", true);
  options.keep_thinking = !render.value("drop_thinking", true);
  options.context_messages = render.value("context_len", 0);
  return options;
}

std::string render(const OrderedJson& messages, const OrderedJson& how) {
  const ChatRequest request = parse_messages(messages.dump(), "messages");
  return render_chat(parse_chat_format(how.at("format").get<std::string>()), request.messages,
                     options_of(how));
}

void expect_render(const OrderedJson& messages, const OrderedJson& how) {
  if (how.contains("error")) {
    EXPECT_THROW(render(messages, how), InputError);
  } else {
    EXPECT_EQ(render(messages, how), how.at("text").get<std::string>());
  }
}

TEST(ChatGolden, EveryRenderMatchesByteForByte) {
  int renders = 0;
  for (const std::string& path : case_files()) {
    const OrderedJson file = read_cases(path);
    for (const OrderedJson& chat : file.at("cases")) {
      for (const OrderedJson& how : chat.at("renders")) {
        SCOPED_TRACE(path + " " + chat.at("id").get<std::string>() + " " +
                     how.at("format").get<std::string>());
        expect_render(chat.at("messages"), how);
        // The templates were fed with what a client of V3.1 sends; both must read the same.
        if (how.at("format") != "v3.2") expect_render(chat.at("jinja_messages"), how);
        ++renders;
      }
    }
  }
  EXPECT_GE(renders, 15 * 11);
}

TEST(ChatGolden, OfficialEncodingTest) {
  for (const std::string& path : case_files()) {
    const OrderedJson cases = read_cases(path);
    if (!cases.contains("official_encoding_test")) continue;
    OrderedJson official = cases.at("official_encoding_test");
    official["format"] = "v3.2";
    expect_render(official.at("messages"), official);
  }
}

void expect_completion(const Completion& got, const OrderedJson& message) {
  EXPECT_EQ(got.content, message.at("content").get<std::string>());
  EXPECT_EQ(got.reasoning_content, message.at("reasoning_content").get<std::string>());
  const OrderedJson& calls = message.at("tool_calls");
  ASSERT_EQ(got.tool_calls.size(), calls.size());
  for (size_t i = 0; i < calls.size(); ++i) {
    const OrderedJson& function = calls[i].at("function");
    EXPECT_EQ(got.tool_calls[i].name, function.at("name").get<std::string>());
    EXPECT_EQ(got.tool_calls[i].arguments, function.at("arguments").get<std::string>());
  }
}

TEST(ChatGolden, CompletionsParseAsTheOfficialParserDoes) {
  for (const std::string& path : case_files()) {
    const OrderedJson file = read_cases(path);
    if (!file.contains("v3.2_parse")) continue;
    for (const OrderedJson& c : file.at("v3.2_parse")) {
      const auto text = c.at("text").get<std::string>();
      SCOPED_TRACE(text);
      const bool thinking = c.at("thinking_mode") == "thinking";
      if (c.contains("error")) {
        EXPECT_THROW(parse_completion(ChatFormat::kV32, thinking, text), InputError);
      } else {
        expect_completion(parse_completion(ChatFormat::kV32, thinking, text), c.at("message"));
      }
    }
  }
}

}  // namespace
}  // namespace tamis
