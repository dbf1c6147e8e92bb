#include "text/chat.h"

#include <array>
#include <utility>

#include "base/error.h"
#include "text/chat_formats.h"
#include "text/chat_markers.h"

namespace tamis {
namespace {

constexpr std::array<std::pair<ChatFormat, std::string_view>, 4> kFormatNames = {{
    {ChatFormat::kV31, "v3.1"},
    {ChatFormat::kV31Plain, "v3.1-plain"},
    {ChatFormat::kV32Exp, "v3.2-exp"},
    {ChatFormat::kV32, "v3.2"},
}};

void check_options(const std::vector<ChatMessage>& messages, const RenderOptions& options) {
  const auto count = static_cast<int64_t>(messages.size());
  if (options.context_messages < 0 || options.context_messages > count) {
    throw InputError("context messages: got " + std::to_string(options.context_messages) +
                     ", want 0 to the number of messages, " + std::to_string(count));
  }
}

}  // namespace

namespace chat {

void refuse_message(size_t index, const std::string& what) {
  throw InputError("messages[" + std::to_string(index) + "]: " + what);
}

const std::string& need_content(const std::vector<ChatMessage>& messages, size_t index) {
  if (!messages[index].has_content) refuse_message(index, "has no content");
  return messages[index].content;
}

}  // namespace chat

std::vector<PromptPiece> render_pieces(ChatFormat format, const std::vector<ChatMessage>& messages,
                                       const RenderOptions& options) {
  check_options(messages, options);
  chat::PieceBuilder out;
  switch (format) {
    case ChatFormat::kV31:
      chat::render_v31(messages, options, out);
      break;
    case ChatFormat::kV31Plain:
      chat::render_v31_plain(messages, options, out);
      break;
    case ChatFormat::kV32Exp:
      chat::render_v32_exp(messages, options, out);
      break;
    case ChatFormat::kV32:
      chat::render_v32(messages, options, out);
      break;
  }
  return out.take();
}

std::string render_chat(ChatFormat format, const std::vector<ChatMessage>& messages,
                        const RenderOptions& options) {
  std::string text;
  for (const PromptPiece& piece : render_pieces(format, messages, options)) text += piece.text;
  return text;
}

bool strip_prefix_eos(const std::vector<ChatMessage>& messages, std::vector<PromptPiece>& pieces) {
  if (messages.empty() || messages.back().role != ChatRole::kAssistant || !messages.back().prefix) {
    return false;
  }
  if (pieces.empty() || !pieces.back().special || pieces.back().text != chat::kEos) return false;
  pieces.pop_back();
  return true;
}

std::vector<PromptPiece> join_unknown_markers(const std::vector<PromptPiece>& pieces,
                                              FunctionRef<bool(std::string_view)> known) {
  std::vector<PromptPiece> joined;
  for (const PromptPiece& piece : pieces) {
    const bool special = piece.special && known(piece.text);
    if (!special && !joined.empty() && !joined.back().special) {
      joined.back().text += piece.text;
    } else {
      joined.push_back({piece.text, special});
    }
  }
  return joined;
}

bool starts_in_thinking(const std::vector<PromptPiece>& pieces) {
  for (auto piece = pieces.rbegin(); piece != pieces.rend(); ++piece) {
    if (piece->special) return piece->text == chat::kThinkStart;
  }
  return false;
}

ChatFormat parse_chat_format(std::string_view name) {
  std::string names;
  for (const auto& [format, known] : kFormatNames) {
    if (name == known) return format;
    names += (names.empty() ? "" : ", ") + std::string(known);
  }
  throw InputError("chat format '" + printable(name) + "' is not known; the formats are " + names);
}

std::string_view chat_format_name(ChatFormat format) {
  for (const auto& [known, name] : kFormatNames) {
    if (known == format) return name;
  }
  return "";
}

}  // namespace tamis
