// Chat messages from anywhere. The first byte chooses the format and how they are rendered.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "text/chat.h"

namespace {

using tamis::ChatFormat;

constexpr ChatFormat kFormats[] = {ChatFormat::kV31, ChatFormat::kV31Plain, ChatFormat::kV32Exp,
                                   ChatFormat::kV32};

void require(bool holds) {
  if (!holds) std::abort();
}

std::string special_text(const std::vector<tamis::PromptPiece>& pieces, std::string& all) {
  std::string special;
  for (const tamis::PromptPiece& piece : pieces) {
    require(!piece.text.empty());
    all += piece.text;
    if (piece.special) special += piece.text;
  }
  return special;
}

// Every text that a user can set becomes one letter, except where its being empty matters.
void neutralise(std::vector<tamis::ChatMessage>& messages, std::vector<tamis::ToolSpec>& tools) {
  const auto shorten = [](std::string& text) {
    if (!text.empty()) text = "x";
  };
  const auto shorten_tool = [&](tamis::ToolSpec& tool) {
    shorten(tool.name);
    shorten(tool.description);
    shorten(tool.parameters_json);
    shorten(tool.function_json);
  };
  for (tamis::ChatMessage& message : messages) {
    shorten(message.content);
    shorten(message.reasoning_content);
    for (tamis::ToolCall& call : message.tool_calls) shorten(call.name);
    for (tamis::ToolSpec& tool : message.tools) shorten_tool(tool);
  }
  for (tamis::ToolSpec& tool : tools) shorten_tool(tool);
}

// Rendering fails with InputError or gives pieces that are the text; users choose no marker.
void render(ChatFormat format, tamis::RenderOptions options, std::string_view json) {
  try {
    tamis::ChatRequest request = tamis::parse_messages(json, "chat");
    options.tools = request.tools;
    const auto pieces = tamis::render_pieces(format, request.messages, options);
    std::string text;
    const std::string special = special_text(pieces, text);
    require(text == tamis::render_chat(format, request.messages, options));
    neutralise(request.messages, options.tools);
    std::string neutral;
    require(special ==
            special_text(tamis::render_pieces(format, request.messages, options), neutral));
  } catch (const tamis::InputError&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  const uint8_t choice = data[0];
  const ChatFormat format = kFormats[choice & 3];
  tamis::RenderOptions options;
  options.thinking = (choice & 4) != 0;
  options.add_generation_prompt = (choice & 16) != 0;
  options.keep_thinking = (choice & 32) != 0;
  options.context_messages = choice >> 6;
  render(format, options, rest);
  return 0;
}
