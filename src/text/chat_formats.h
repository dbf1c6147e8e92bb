// One function a format. Private to text/chat*.cpp; users call render_pieces().
#pragma once

#include <vector>

#include "text/chat.h"
#include "text/chat_pieces.h"

namespace tamis::chat {

void render_v31(const std::vector<ChatMessage>& messages, const RenderOptions& options,
                PieceBuilder& out);
void render_v31_plain(const std::vector<ChatMessage>& messages, const RenderOptions& options,
                      PieceBuilder& out);
void render_v32_exp(const std::vector<ChatMessage>& messages, const RenderOptions& options,
                    PieceBuilder& out);
void render_v32(const std::vector<ChatMessage>& messages, const RenderOptions& options,
                PieceBuilder& out);

// InputError "messages[INDEX]: WHAT".
[[noreturn]] void refuse_message(size_t index, const std::string& what);

// The message's content; InputError if it is absent or null.
const std::string& need_content(const std::vector<ChatMessage>& messages, size_t index);

}  // namespace tamis::chat
