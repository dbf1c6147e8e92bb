#include "text/tokenizer_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "base/utf8.h"
#include "text/tokenizer_json_sax.h"

namespace tamis {
namespace {

constexpr size_t kMaxAddedTokenBytes = 512;

// One place of the file: its value and its name in messages.
struct Field {
  const Json* value;  // null when the key is absent
  std::string name;

  bool absent() const { return value == nullptr || value->is_null(); }
};

class SpecReader {
 public:
  SpecReader(std::string_view json, const std::string& where) : where_(where) {
    max_id_ = std::min<int64_t>(static_cast<int64_t>(json.size()), INT32_MAX);
    parse_tokenizer_json(json, where, tables_, root_);
  }

  TokenizerSpec read() {
    require(root_.is_object(), "want an object");
    const Field root{&root_, ""};
    read_model(object(member(root, "model")));
    read_normalizer(member(root, "normalizer"));
    spec_.split = read_pre_tokenizer(object(member(root, "pre_tokenizer")));
    const Field decoder = object(member(root, "decoder"));
    require(text(member(decoder, "type")) == "ByteLevel", "decoder.type: want \"ByteLevel\"");
    spec_.vocab = std::move(tables_.vocab);
    read_vocab_ids();
    read_added(member(root, "added_tokens"));
    read_bytes();
    read_merges();
    spec_.id_count = static_cast<int64_t>(owner_.size());
    return std::move(spec_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const { throw InputError(where_ + ": " + what); }

  void require(bool condition, const std::string& what) const {
    if (!condition) fail(what);
  }

  // Access, with the type named when it is another. Strings and objects must be there.
  static Field member(const Field& parent, const char* key) {
    const auto it = parent.value->find(key);
    return {it == parent.value->end() ? nullptr : &*it,
            parent.name.empty() ? key : parent.name + "." + key};
  }
  Field object(const Field& f) const {
    if (f.value == nullptr || !f.value->is_object()) wrong_type(f, "an object");
    return f;
  }
  const std::string& text(const Field& f) const {
    if (f.value == nullptr || !f.value->is_string()) wrong_type(f, "a string");
    return f.value->get_ref<const std::string&>();
  }
  bool boolean(const Field& f) const {
    if (f.value == nullptr || !f.value->is_boolean()) wrong_type(f, "true or false");
    return f.value->get<bool>();
  }
  bool boolean_or(const Field& f, bool otherwise) const {
    return f.absent() ? otherwise : boolean(f);
  }
  [[noreturn]] void wrong_type(const Field& f, const char* wanted) const {
    fail(fmt::format("{}: want {}, found {}", f.name, wanted,
                     f.value == nullptr ? "nothing" : f.value->type_name()));
  }

  void read_model(const Field& model) {
    const std::string& type = text(member(model, "type"));
    require(type == "BPE", fmt::format("model.type: want \"BPE\", found \"{}\"", printable(type)));
    require(tables_.has_vocab, "model.vocab: want an object of tokens and ids");
    require(tables_.has_merges, "model.merges: want an array of merges");
    const Field dropout = member(model, "dropout");
    require(dropout.absent() || *dropout.value == 0.0,
            "model.dropout: want none, an encoding must not be random");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const Field affix = member(model, key);
      require(affix.absent() || text(affix).empty(), affix.name + ": not supported, want none");
    }
    spec_.ignore_merges = boolean_or(member(model, "ignore_merges"), false);
  }

  void read_normalizer(const Field& normalizer) const {
    if (normalizer.absent()) return;
    const std::string& type = text(member(object(normalizer), "type"));
    const Field steps = member(normalizer, "normalizers");
    const bool empty = type == "Sequence" && steps.value != nullptr && steps.value->is_array() &&
                       steps.value->empty();
    require(empty, fmt::format("normalizer: \"{}\" is not supported, want none", printable(type)));
  }

  SplitRule read_pre_tokenizer(const Field& pre) const {
    const std::string& type = text(member(pre, "type"));
    if (type == "ByteLevel") {
      read_byte_level(pre, /*use_regex=*/true);
      return SplitRule::kGpt2;
    }
    require(type == "Sequence", fmt::format("pre_tokenizer.type: \"{}\" is not supported, want "
                                            "\"Sequence\" or \"ByteLevel\"",
                                            printable(type)));
    const Field list = member(pre, "pretokenizers");
    if (list.value == nullptr || !list.value->is_array()) wrong_type(list, "an array");
    std::vector<std::string_view> patterns = {kDigitsPattern, kCjkPattern, kTextPattern};
    const bool one_split = list.value->size() == 2;
    if (one_split) patterns = {kGlm4Pattern};
    require(list.value->size() == patterns.size() + 1,
            fmt::format("{}: {} steps, want 1 or 3 times Split, then ByteLevel", list.name,
                        list.value->size()));
    for (size_t i = 0; i < patterns.size(); ++i) read_split(item(list, i), patterns[i]);
    read_byte_level(item(list, patterns.size()), /*use_regex=*/false);
    return one_split ? SplitRule::kGlm4 : SplitRule::kDeepSeekV3;
  }

  Field item(const Field& list, size_t i) const {
    return object({&(*list.value)[i], fmt::format("{}[{}]", list.name, i)});
  }

  void read_split(const Field& split, std::string_view wanted) const {
    require(text(member(split, "type")) == "Split", split.name + ".type: want \"Split\"");
    const Field regex = member(object(member(split, "pattern")), "Regex");
    const std::string& pattern = text(regex);
    require(pattern == wanted, fmt::format("{}: the pattern \"{}\" is not a known one, want \"{}\"",
                                           regex.name, printable(pattern), printable(wanted)));
    require(text(member(split, "behavior")) == "Isolated",
            split.name + ".behavior: want \"Isolated\"");
    require(!boolean_or(member(split, "invert"), false), split.name + ".invert: want false");
  }

  void read_byte_level(const Field& f, bool use_regex) const {
    require(text(member(f, "type")) == "ByteLevel", f.name + ".type: want \"ByteLevel\"");
    require(!boolean(member(f, "add_prefix_space")), f.name + ".add_prefix_space: want false");
    require(boolean_or(member(f, "use_regex"), true) == use_regex,
            fmt::format("{}.use_regex: want {}", f.name, use_regex));
  }

  // owner_[id]: 0 free, 1 + index of the vocabulary entry, or kAddedOwner.
  void own(int32_t id, uint32_t owner) {
    if (static_cast<size_t>(id) >= owner_.size()) owner_.resize(static_cast<size_t>(id) + 1, 0);
    owner_[static_cast<size_t>(id)] = owner;
  }
  uint32_t owner(int64_t id) const {
    return id < static_cast<int64_t>(owner_.size()) ? owner_[static_cast<size_t>(id)] : 0;
  }

  void read_vocab_ids() {
    for (size_t i = 0; i < spec_.vocab.entries().size(); ++i) {
      const KeyTable::Entry& e = spec_.vocab.entries()[i];
      if (const uint32_t other = owner(e.id); other != 0) {
        const KeyTable::Entry& first = spec_.vocab.entries()[other - 1];
        fail(fmt::format("model.vocab: \"{}\" and \"{}\" have the same id {}",
                         printable(spec_.vocab.key(first)), printable(spec_.vocab.key(e)), e.id));
      }
      own(e.id, static_cast<uint32_t>(i + 1));
    }
  }

  void read_added(const Field& list) {
    if (list.absent()) return;
    if (!list.value->is_array()) wrong_type(list, "an array");
    KeyTable contents;
    for (size_t i = 0; i < list.value->size(); ++i) read_added_token(item(list, i), contents);
  }

  void read_added_token(const Field& f, KeyTable& contents) {
    const std::string& content = text(member(f, "content"));
    require(!content.empty(), f.name + ".content: is empty");
    require(content.size() <= kMaxAddedTokenBytes,
            fmt::format("{}.content: {} bytes, the limit is {}", f.name, content.size(),
                        kMaxAddedTokenBytes));
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      const Field flag = member(f, key);
      require(!boolean_or(flag, false), flag.name + ": true is not supported");
    }
    const int32_t id = read_id(member(f, "id"));
    require(contents.add(content, id),
            fmt::format("{}.content: \"{}\" is there twice", f.name, printable(content)));
    const std::optional<int32_t> in_vocab = spec_.vocab.find(content);
    require(!in_vocab || *in_vocab == id,
            fmt::format("{}.id: \"{}\" is {} here and {} in model.vocab", f.name,
                        printable(content), id, in_vocab.value_or(0)));
    require(in_vocab ? owner(id) != kAddedOwner : owner(id) == 0,
            fmt::format("{}.id: {} belongs to another token", f.name, id));
    own(id, kAddedOwner);
    spec_.added.push_back({content, id, boolean_or(member(f, "normalized"), true),
                           boolean_or(member(f, "special"), false)});
  }

  int32_t read_id(const Field& f) const {
    if (f.value == nullptr || !f.value->is_number_integer()) wrong_type(f, "an id");
    const bool fits =
        f.value->is_number_unsigned() && f.value->get<uint64_t>() < static_cast<uint64_t>(max_id_);
    require(fits, fmt::format("{}: {} is outside [0, {})", f.name, f.value->dump(), max_id_));
    return static_cast<int32_t>(f.value->get<int64_t>());
  }

  void read_bytes() {
    const ByteAlphabet alphabet;
    for (size_t byte = 0; byte < 256; ++byte) {
      std::string key;
      utf8_append(key, alphabet.character(static_cast<uint8_t>(byte)));
      const std::optional<int32_t> id = spec_.vocab.find(key);
      require(id.has_value(),
              fmt::format("model.vocab: no token for the byte 0x{:02X} (\"{}\")", byte, key));
      require(owner(*id) != kAddedOwner,
              fmt::format("added_tokens: \"{}\" is the token of one byte", printable(key)));
      spec_.byte_ids[byte] = *id;
    }
  }

  void read_merges() {
    const MergeKeys& keys = tables_.merges;
    spec_.merges.reserve(keys.entries.size());
    for (size_t i = 0; i < keys.entries.size(); ++i) {
      const MergeKeys::Entry& e = keys.entries[i];
      const int32_t result = merge_part(i, keys.joined(e));
      spec_.merges.push_back({merge_part(i, keys.left(e)), merge_part(i, keys.right(e)), result,
                              owner(result) == kAddedOwner});
    }
  }

  int32_t merge_part(size_t i, std::string_view key) const {
    const std::optional<int32_t> id = spec_.vocab.find(key);
    if (!id) {
      fail(fmt::format("model.merges[{}]: \"{}\" is not in model.vocab", i, printable(key)));
    }
    return *id;
  }

  static constexpr uint32_t kAddedOwner = UINT32_MAX;

  const std::string& where_;
  int64_t max_id_ = 0;
  TokenizerTables tables_;
  Json root_;
  TokenizerSpec spec_;
  std::vector<uint32_t> owner_;
};

}  // namespace

TokenizerSpec read_tokenizer_json(std::string_view json, const std::string& where) {
  return SpecReader(json, where).read();
}

}  // namespace tamis
