// Chat formats: from a list of messages to the exact prompt text of a DeepSeek-V3.1 / V3.2 model.
//   ChatRequest request = parse_messages(read_text_file(path, limit), path);
//   std::string prompt = render_chat(detect_chat_format(model_dir), request.messages, options);
// The formats are built in; a checkpoint's template is recognised and never run. What each one
// looks like, and how it is recognised, is in docs/formats/chat.md.
// Everything here throws InputError for input that the official encoder would refuse.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/function_ref.h"

namespace tamis {

enum class ChatFormat {
  kV31,       // DeepSeek-V3.1 and V3.1-Terminus
  kV31Plain,  // V3.1's turns without tools: the bundled model
  kV32Exp,    // DeepSeek-V3.2-Exp
  kV32,       // DeepSeek-V3.2: reasoning kept within a turn, DSML tool calls
};

// A function that the model may call. `function_json` and `parameters_json` are the client's JSON,
// keys in their order, written the way Python's json.dumps(ensure_ascii=False) writes it.
struct ToolSpec {
  std::string name;
  std::string description;
  std::string parameters_json;
  std::string function_json;
  bool strict = false;  // calls shall follow the schema of the parameters
};

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // JSON text
};

enum class ChatRole { kSystem, kDeveloper, kUser, kAssistant, kTool };

// One message of the OpenAI form. Absent and null texts are empty; has_content tells them apart.
struct ChatMessage {
  ChatRole role = ChatRole::kUser;
  std::string content;
  bool has_content = false;
  std::string reasoning_content;
  std::vector<ToolCall> tool_calls;  // of an assistant
  std::string tool_call_id;          // of a tool
  std::string name;
  bool prefix = false;          // an assistant's text that the model shall continue
  std::vector<ToolSpec> tools;  // of a system or developer message (V3.2 writes them there)
  std::string response_format;  // JSON text of the wanted schema; empty if none
};

struct ChatRequest {
  std::vector<ChatMessage> messages;
  std::vector<ToolSpec> tools;
};

// Reads a bare array of messages, or an object {"messages": [...], "tools": [...]}. `where` starts
// every message of an error: "F.json: messages[2].role: want a string, got a number".
ChatRequest parse_messages(std::string_view json_text, const std::string& where);

// Reads an array of {"type": "function", "function": {...}}.
std::vector<ToolSpec> parse_tools(std::string_view json_text, const std::string& where);

struct RenderOptions {
  bool thinking = false;
  bool add_generation_prompt = true;
  // V3.2 drops the reasoning of earlier turns by default; true is its drop_thinking=False.
  bool keep_thinking = false;
  int64_t context_messages = 0;  // the first messages are known to the model: render what follows
  std::vector<ToolSpec> tools;   // offered to the model beside those of the messages
};

// A part of the prompt. A special piece is one marker that the format wrote, such as <｜User｜>:
// look it up among the tokenizer's added tokens. Any other piece is text to be encoded without
// looking for added tokens, because it holds what users wrote. Two plain pieces never follow each
// other.
struct PromptPiece {
  std::string text;
  bool special = false;
};

std::vector<PromptPiece> render_pieces(ChatFormat format, const std::vector<ChatMessage>& messages,
                                       const RenderOptions& options);

// The same as one text.
std::string render_chat(ChatFormat format, const std::vector<ChatMessage>& messages,
                        const RenderOptions& options);

// The formats close every assistant message. When the last one is a prefix, this removes that
// closing marker, so that the model continues the text. Returns whether there was one.
bool strip_prefix_eos(const std::vector<ChatMessage>& messages, std::vector<PromptPiece>& pieces);

// Special pieces that `known` does not accept become plain text, joined to their neighbours: for a
// tokenizer that lacks a marker of the format, such as ｜DSML｜.
std::vector<PromptPiece> join_unknown_markers(const std::vector<PromptPiece>& pieces,
                                              FunctionRef<bool(std::string_view)> known);

// True if what the model writes next begins inside <think>.
bool starts_in_thinking(const std::vector<PromptPiece>& pieces);

// "v3.1", "v3.1-plain", "v3.2-exp", "v3.2" and back; InputError lists the names.
ChatFormat parse_chat_format(std::string_view name);
std::string_view chat_format_name(ChatFormat format);

// Reads config.json, tokenizer_config.json, chat_template.jinja and the encoding/ folder of a
// checkpoint. InputError if they do not tell, or tell a format that is not built in.
ChatFormat detect_chat_format(const std::string& model_dir);

// What detect_chat_format looks at. Texts are empty where a file is absent.
struct ChatFormatClues {
  std::string template_text = {};
  std::string model_type = {};        // of config.json
  std::string encoding_script = {};   // name of encoding/encoding_*.py
  std::string tokenizer_config = {};  // the whole file
};
ChatFormat recognise_chat_format(const ChatFormatClues& clues, const std::string& where);

}  // namespace tamis
