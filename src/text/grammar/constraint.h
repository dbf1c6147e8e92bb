// What a request wants of its answer, compiled: JSON, a schema, a regular expression, calls of
// declared tools, all of it after the thought if there is one.
//
//   auto trie = std::make_shared<TokenTrie>(tokenizer, vocab_size);     // once a model
//   auto constraint = compile_constraint(spec, trie);                   // null: nothing to hold
//
// Compiling does not touch the model: do it away from the engine's thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "text/chat.h"
#include "text/grammar/automaton.h"

namespace tamis {

struct ConstraintSpec {
  enum class Answer : uint8_t { kText, kJsonObject, kSchema, kRegex };
  Answer answer = Answer::kText;
  std::string text;  // the schema, or the regular expression, which the whole answer matches

  enum class Tools : uint8_t {
    kFree,      // nothing is held to
    kAuto,      // an answer, and calls of declared tools after it if the model likes
    kRequired,  // calls and nothing else
  };
  Tools tools = Tools::kFree;
  ChatFormat format = ChatFormat::kV31;
  // Those that may be called. The arguments of a strict one follow its schema; those of another
  // are any JSON object, because its schema was written to be read, not to be held to.
  std::vector<ToolSpec> declared;
  bool parallel = true;  // more than one call

  bool in_thinking = false;  // the prompt has opened a thought: all this begins after </think>
};

// InputError naming what is wrong or not supported.
std::shared_ptr<Constraint> compile_constraint(const ConstraintSpec& spec,
                                               std::shared_ptr<const TokenTrie> trie);

}  // namespace tamis
