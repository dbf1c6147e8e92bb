#include "text/tokenizer.h"

#include <fmt/format.h>

#include <unordered_map>

#include "base/error.h"
#include "base/json.h"
#include "base/utf8.h"
#include "text/tokenizer_added.h"
#include "text/tokenizer_bpe.h"
#include "text/tokenizer_json.h"
#include "text/tokenizer_split.h"
#include "text/tokenizer_vocab.h"

namespace tamis {

// Files of this family are 5 to 30 MB.
constexpr int64_t kMaxFileBytes = int64_t{256} << 20;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct Tokenizer::State {
  enum Kind : uint8_t { kNoToken, kOrdinary, kAdded, kSpecial };

  explicit State(TokenizerSpec spec);

  Kind kind(int32_t id) const {
    return id >= 0 && id < static_cast<int64_t>(kinds.size()) ? kinds[static_cast<size_t>(id)]
                                                              : kNoToken;
  }
  void set_bytes(int32_t id, std::string_view key);
  std::optional<int32_t> whole_word(std::string_view word, bool plain) const;

  UnicodeClasses classes;
  SplitRule split;
  BytePairEncoder bpe;
  bool ignore_merges;
  KeyTable vocab, added;
  AddedTokenMatcher first_pass, second_pass;  // the library finds "normalized" tokens last
  ByteAlphabet alphabet;

  // By id; `bytes` holds the text of all tokens.
  std::vector<Kind> kinds;
  std::vector<uint32_t> begins, sizes;
  std::string bytes;
};

Tokenizer::State::State(TokenizerSpec spec)
    : split(spec.split),
      bpe(spec.byte_ids, std::move(spec.merges), spec.id_count),
      ignore_merges(spec.ignore_merges),
      vocab(std::move(spec.vocab)),
      kinds(static_cast<size_t>(spec.id_count), kNoToken),
      begins(kinds.size(), 0),
      sizes(kinds.size(), 0) {
  for (const KeyTable::Entry& e : vocab.entries()) {
    kinds[static_cast<size_t>(e.id)] = kOrdinary;
    set_bytes(e.id, vocab.key(e));
  }
  for (const AddedToken& token : spec.added) {
    kinds[static_cast<size_t>(token.id)] = token.special ? kSpecial : kAdded;
    set_bytes(token.id, token.content);
    added.add(token.content, token.id);
    (token.normalized ? second_pass : first_pass).add(token.content, token.id);
  }
}

// The token that is this word, for files that ask for whole words before merges.
std::optional<int32_t> Tokenizer::State::whole_word(std::string_view word, bool plain) const {
  if (!ignore_merges) return std::nullopt;
  std::string key;
  for (const char c : word) utf8_append(key, alphabet.character(static_cast<uint8_t>(c)));
  const std::optional<int32_t> id = vocab.find(key);
  return id && plain && kind(*id) != kOrdinary ? std::nullopt : id;
}

// A key with a character outside the alphabet stands for itself: added tokens mostly do.
void Tokenizer::State::set_bytes(int32_t id, std::string_view key) {
  const size_t begin = bytes.size();
  if (!alphabet.append_bytes(key, bytes)) bytes += key;
  begins[static_cast<size_t>(id)] = static_cast<uint32_t>(begin);
  sizes[static_cast<size_t>(id)] = static_cast<uint32_t>(bytes.size() - begin);
}

namespace {

// Calls text(part) for what lies between matches and token(id) for each match.
template <typename Text, typename Token>
void for_each_part(const AddedTokenMatcher& matcher, std::string_view whole, Text text,
                   Token token) {
  size_t done = 0;
  while (const auto match = matcher.find(whole, done)) {
    if (done < match->begin) text(whole.substr(done, match->begin - done));
    token(match->id);
    done = match->end;
  }
  if (done < whole.size()) text(whole.substr(done));
}

// Words of one text repeat, so the ids of a word are looked up in those already produced.
class WordEncoder {
 public:
  WordEncoder(const BytePairEncoder& bpe, bool avoid_added, std::vector<int32_t>& out)
      : bpe_(bpe), avoid_added_(avoid_added), out_(out) {}

  void encode(std::string_view word) {
    if (word.size() > kMaxCachedBytes) return bpe_.encode(word, avoid_added_, scratch_, out_);
    if (const auto it = seen_.find(word); it != seen_.end()) return repeat(it->second);
    const size_t begin = out_.size();
    bpe_.encode(word, avoid_added_, scratch_, out_);
    if (seen_.size() < kMaxCachedWords) seen_.emplace(word, Ids{begin, out_.size()});
  }

 private:
  struct Ids {
    size_t begin, end;  // in out_
  };
  static constexpr size_t kMaxCachedBytes = 64, kMaxCachedWords = 1 << 16;

  void repeat(const Ids& ids) {
    for (size_t i = ids.begin; i < ids.end; ++i) out_.push_back(out_[i]);
  }

  const BytePairEncoder& bpe_;
  const bool avoid_added_;
  std::vector<int32_t>& out_;
  BytePairEncoder::Scratch scratch_;
  std::unordered_map<std::string_view, Ids> seen_;  // views into the text
};

void check_text(std::string_view text) {
  if (text.size() > INT32_MAX) {
    throw InputError(fmt::format("text: {} bytes, the limit is {}", text.size(), INT32_MAX));
  }
  const size_t bad = utf8_first_invalid(text);
  if (bad != std::string_view::npos) {
    throw InputError(fmt::format("text: not UTF-8 at byte {} of {}", bad, text.size()));
  }
}

// Bytes at the end of text that begin a character without ending it.
size_t incomplete_tail(std::string_view text) {
  for (size_t n = 1; n <= 3 && n <= text.size(); ++n) {
    const std::string_view tail = text.substr(text.size() - n);
    const auto lead = static_cast<unsigned char>(tail[0]);
    if ((lead & 0xC0) == 0x80) continue;
    const size_t wanted = lead > 0xF4    ? 0
                          : lead >= 0xF0 ? 4
                          : lead >= 0xE0 ? 3
                          : lead >= 0xC2 ? 2
                                         : 0;
    // A beginning that can still be continued is one invalid part; others are several.
    return wanted > n && utf8_lossy(tail) == kReplacement ? n : 0;
  }
  return 0;
}

}  // namespace

Tokenizer::Tokenizer(std::shared_ptr<const State> state) : state_(std::move(state)) {}

Tokenizer Tokenizer::load(const std::string& path) {
  return parse(read_text_file(path, kMaxFileBytes), path);
}

Tokenizer Tokenizer::parse(std::string_view json, const std::string& where) {
  if (static_cast<int64_t>(json.size()) > kMaxFileBytes) {
    throw InputError(
        fmt::format("{}: {} bytes, the limit is {}", where, json.size(), kMaxFileBytes));
  }
  return Tokenizer(std::make_shared<const State>(read_tokenizer_json(json, where)));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, SpecialTokens mode) const {
  check_text(text);
  const State& s = *state_;
  const bool plain = mode == SpecialTokens::kPlain;
  std::vector<int32_t> ids;
  WordEncoder words(s.bpe, plain, ids);
  const auto add_id = [&](int32_t id) { ids.push_back(id); };
  const auto add_word = [&](std::string_view word) {
    const std::optional<int32_t> whole = s.whole_word(word, plain);
    return whole ? add_id(*whole) : words.encode(word);
  };
  const auto add_text = [&](std::string_view part) {
    split_words(s.split, s.classes, part, add_word);
  };
  if (plain) {
    add_text(text);
    return ids;
  }
  for_each_part(
      s.first_pass, text,
      [&](std::string_view part) { for_each_part(s.second_pass, part, add_text, add_id); }, add_id);
  return ids;
}

std::string_view Tokenizer::bytes_of(int32_t id) const {
  const State& s = *state_;
  if (s.kind(id) == State::kNoToken) {
    throw InputError(
        fmt::format("token id {}: no token has it; ids lie in [0, {})", id, vocab_size()));
  }
  const auto i = static_cast<size_t>(id);
  return std::string_view(s.bytes).substr(s.begins[i], s.sizes[i]);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    const std::string_view token = bytes_of(id);
    if (!skip_special || !is_special(id)) bytes += token;
  }
  return utf8_lossy(bytes);
}

std::string Tokenizer::token_bytes(int32_t id) const { return std::string(bytes_of(id)); }

int64_t Tokenizer::vocab_size() const { return static_cast<int64_t>(state_->kinds.size()); }

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const std::optional<int32_t> id = state_->added.find(token);
  return id ? id : state_->vocab.find(token);
}

bool Tokenizer::is_special(int32_t id) const { return state_->kind(id) == State::kSpecial; }
bool Tokenizer::is_ordinary(int32_t id) const { return state_->kind(id) == State::kOrdinary; }

StreamingDecoder::StreamingDecoder(Tokenizer tokenizer, bool skip_special)
    : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

std::string StreamingDecoder::push(int32_t id) {
  const std::string_view token = tokenizer_.bytes_of(id);
  if (skip_special_ && tokenizer_.is_special(id)) return "";
  held_ += token;
  const size_t complete = held_.size() - incomplete_tail(held_);
  std::string text = utf8_lossy(std::string_view(held_).substr(0, complete));
  held_.erase(0, complete);
  return text;
}

std::string StreamingDecoder::flush() {
  std::string text = utf8_lossy(held_);
  held_.clear();
  return text;
}

}  // namespace tamis
