// JSON schemas as grammars: the subset that OpenAI documents for structured outputs, and minLength
// and maxLength. What is not in it is refused by name. Properties come in the order in which the
// schema has them. docs/engine.md lists the keywords.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/json.h"
#include "text/grammar/grammar.h"

namespace tamis {

class SchemaCompiler {
 public:
  // `root` is what "$ref": "#" means, and must outlive the compiler. `where` starts every message.
  SchemaCompiler(GrammarBuilder& builder, const OrderedJson& root, std::string where);
  ~SchemaCompiler();

  // The JSON texts of a schema. InputError naming the keyword and its place.
  GrammarBuilder::Expr value(const OrderedJson& schema, const std::string& path);
  // Any JSON value; any JSON object.
  GrammarBuilder::Expr any_value();
  GrammarBuilder::Expr any_object();

  // The schema that stands behind a chain of references.
  const OrderedJson& resolve(const OrderedJson& schema, const std::string& path) const;
  // The text of a schema for a string as it stands, not in quotation marks; `end` may not occur.
  GrammarBuilder::Expr plain_string(const OrderedJson& schema, const std::string& path);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Parses with limits, then compiles. A schema may be {"type": ...} or true.
OrderedJson parse_schema(std::string_view text, const std::string& where);

}  // namespace tamis
