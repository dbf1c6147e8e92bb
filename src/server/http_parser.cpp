#include "server/http_parser.h"

#include <algorithm>
#include <array>

namespace tamis::server {
namespace {

constexpr size_t kMaxMethod = 32;
constexpr size_t kMaxChunkDigits = 8;
constexpr int64_t kMaxExtensionBytes = 16 << 10;
constexpr int64_t kMaxTrailerBytes = 8 << 10;

bool is_token_char(char c) {
  if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z')) return true;
  return c != 0 && std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}

bool is_token(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), is_token_char);
}

bool is_value_char(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte == '\t' || (byte >= 0x20 && byte != 0x7f);
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

int hex_value(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Fields that would change how the message is read or who sent it, were they believed at its end.
bool is_forbidden_trailer(std::string_view name) {
  constexpr std::array kNames = {
      "authorization", "connection",   "content-encoding", "content-length",
      "content-range", "content-type", "cookie",           "expect",
      "host",          "te",           "trailer",          "transfer-encoding",
      "upgrade",       "x-api-key"};
  return std::any_of(kNames.begin(), kNames.end(),
                     [&](const char* n) { return equal_ignoring_case(name, n); });
}

int count_fields(const HttpRequest& request, std::string_view name) {
  return static_cast<int>(
      std::count_if(request.headers.begin(), request.headers.end(),
                    [&](const HttpHeader& h) { return equal_ignoring_case(h.name, name); }));
}

// host, host:port, [v6]:port; empty for a URL that has no host.
bool is_host_and_port(std::string_view text) {
  const auto is_name_char = [](char c) {
    return is_digit(c) || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
           std::string_view("-._~!$&'()*+;=%").find(c) != std::string_view::npos;
  };
  const auto is_v6_char = [](char c) { return hex_value(c) >= 0 || c == ':' || c == '.'; };
  size_t end = text.find(':');
  if (text.starts_with('[')) {
    end = text.find(']');
    if (end == std::string_view::npos || end == 1) return false;
    const std::string_view v6 = text.substr(1, end - 1);
    if (!std::all_of(v6.begin(), v6.end(), is_v6_char)) return false;
    ++end;
  } else {
    const std::string_view name = text.substr(0, end);
    if (!std::all_of(name.begin(), name.end(), is_name_char)) return false;
    if (end == std::string_view::npos) return true;
  }
  const std::string_view rest = text.substr(end);
  return rest.empty() || (rest[0] == ':' && std::all_of(rest.begin() + 1, rest.end(), is_digit));
}

}  // namespace

bool HttpParser::fail(int status, std::string_view message) {
  state_ = State::kError;
  error_status_ = status;
  error_ = message;
  return false;
}

size_t HttpParser::push(std::string_view bytes) {
  switch (state_) {
    case State::kHead:
      return push_head(bytes);
    case State::kBody:
      return chunked_ ? push_chunk(bytes) : push_body(bytes);
    default:
      return 0;
  }
}

void HttpParser::resume() {
  if (state_ != State::kHeadDone) return;
  state_ = chunked_ || left_ > 0 ? State::kBody : State::kDone;
}

size_t HttpParser::push_head(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    on_head_byte(bytes[i]);
    if (state_ != State::kHead) return i + 1;
  }
  return bytes.size();
}

bool HttpParser::on_head_byte(char c) {
  if (c == '\n' && previous_ != '\r') return fail(400, "a line ends in LF without CR");
  if (previous_ == '\r' && c != '\n') return fail(400, "CR without LF");
  previous_ = c;
  // An empty line before a request is left over from the one before; more than two are not.
  if (head_.empty() && (c == '\r' || c == '\n')) {
    if (c == '\n' && ++empty_lines_ > 2) return fail(400, "empty lines in place of a request");
    return true;
  }
  head_ += c;
  const auto size = static_cast<int64_t>(head_.size());
  if (lines_ == 0) {
    const bool in_method = head_.find(' ') == std::string::npos;
    if (in_method && (head_.size() > kMaxMethod || !is_token_char(c))) {
      return fail(400, "this is not an HTTP/1.1 request");
    }
    if (size > limits_.url_bytes + 64) return fail(414, "the URL is too long");
  }
  if (size > limits_.head_bytes) return fail(431, "the header is too large");
  if (c != '\n') return true;
  if (++lines_ > limits_.fields + 2) return fail(431, "too many header fields");
  if (head_.ends_with("\r\n\r\n")) return parse_head();
  return true;
}

bool HttpParser::parse_head() {
  std::string_view rest = head_;
  bool first = true;
  while (true) {
    const size_t end = rest.find("\r\n");
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end + 2);
    if (line.empty()) break;
    if (first) {
      if (!parse_request_line(line)) return false;
      first = false;
      continue;
    }
    HttpHeader field;
    if (!parse_field(line, field)) return false;
    request_.headers.push_back(std::move(field));
  }
  if (static_cast<int64_t>(request_.headers.size()) > limits_.fields) {
    return fail(431, "too many header fields");
  }
  if (!check_host() || !check_framing() || !read_connection()) return false;
  state_ = State::kHeadDone;
  return true;
}

bool HttpParser::parse_request_line(std::string_view line) {
  const size_t a = line.find(' '), b = line.rfind(' ');
  if (a == std::string_view::npos || a == b) return fail(400, "the request line is malformed");
  const std::string_view method = line.substr(0, a), version = line.substr(b + 1);
  if (!is_token(method)) return fail(400, "the method is malformed");
  if (version != "HTTP/1.1" && version != "HTTP/1.0") {
    const bool other = version.size() == 8 && version.starts_with("HTTP/") &&
                       is_digit(version[5]) && version[6] == '.' && is_digit(version[7]) &&
                       version[5] != '1';
    return fail(other ? 505 : 400, "the HTTP version is not 1.1 or 1.0");
  }
  request_.method = method;
  request_.http10 = version == "HTTP/1.0";
  return parse_target(line.substr(a + 1, b - a - 1));
}

bool HttpParser::parse_target(std::string_view target) {
  if (static_cast<int64_t>(target.size()) > limits_.url_bytes) {
    return fail(414, "the URL is too long");
  }
  const bool plain = !target.empty() && std::all_of(target.begin(), target.end(), [](char c) {
    return c > 0x20 && c < 0x7f && c != '#' && c != '\\';
  });
  if (!plain) return fail(400, "the URL is malformed");
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (!equal_ignoring_case(target.substr(0, scheme.size()), scheme)) continue;
    target.remove_prefix(scheme.size());
    const size_t slash = target.find('/');
    absolute_authority_ = target.substr(0, slash);
    target = slash == std::string_view::npos ? "/" : target.substr(slash);
    if (absolute_authority_.empty()) return fail(400, "the URL is malformed");
  }
  if (target.front() != '/' && !(target == "*" && request_.method == "OPTIONS")) {
    return fail(400, "the URL is malformed");
  }
  const size_t question = target.find('?');
  request_.path = target.substr(0, question);
  if (question != std::string_view::npos) request_.query = target.substr(question + 1);
  return true;
}

bool HttpParser::parse_field(std::string_view line, HttpHeader& out) {
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos) return fail(400, "a header field has no colon");
  const std::string_view name = line.substr(0, colon), value = trim(line.substr(colon + 1));
  if (!is_token(name)) return fail(400, "the name of a header field is malformed");
  if (!std::all_of(line.begin() + static_cast<std::ptrdiff_t>(colon), line.end(), is_value_char)) {
    return fail(400, "a control character in a header field");
  }
  out = {std::string(name), std::string(value)};
  return true;
}

bool HttpParser::check_host() {
  const int hosts = count_fields(request_, "host");
  if (hosts > 1) return fail(400, "more than one Host");
  if (hosts == 0) return request_.http10 || fail(400, "no Host");
  const std::string& host = *request_.header("host");
  if (!is_host_and_port(host)) return fail(400, "Host is malformed");
  if (!absolute_authority_.empty() && !equal_ignoring_case(absolute_authority_, host)) {
    return fail(400, "Host is not that of the URL");
  }
  return true;
}

bool HttpParser::check_framing() {
  const int lengths = count_fields(request_, "content-length");
  const int codings = count_fields(request_, "transfer-encoding");
  if (codings > 0) {
    if (lengths > 0) return fail(400, "both Content-Length and Transfer-Encoding");
    if (request_.http10) return fail(400, "Transfer-Encoding in HTTP/1.0");
    if (codings > 1 || !equal_ignoring_case(*request_.header("transfer-encoding"), "chunked")) {
      return fail(400, "a Transfer-Encoding other than chunked");
    }
    chunked_ = request_.has_body = true;
    return true;
  }
  if (lengths == 0) return true;
  const std::string& text = *request_.header("content-length");
  const bool digits = !text.empty() && std::all_of(text.begin(), text.end(), is_digit);
  if (lengths > 1 || !digits || (text.size() > 1 && text[0] == '0')) {
    return fail(400, "Content-Length is malformed");
  }
  if (text.size() > 18) return fail(text.size() > 19 ? 400 : 413, "the body is too large");
  for (const char c : text) left_ = left_ * 10 + (c - '0');
  if (left_ > limits_.body_bytes) return fail(413, "the body is too large");
  request_.has_body = left_ > 0;
  return true;
}

bool HttpParser::read_connection() {
  keep_alive_ = !request_.http10;
  for (const HttpHeader& h : request_.headers) {
    if (equal_ignoring_case(h.name, "connection")) {
      std::string_view rest = h.value;
      while (!rest.empty()) {
        const size_t comma = std::min(rest.find(','), rest.size());
        const std::string_view option = trim(rest.substr(0, comma));
        if (equal_ignoring_case(option, "close")) keep_alive_ = false;
        if (request_.http10 && equal_ignoring_case(option, "keep-alive")) keep_alive_ = true;
        rest.remove_prefix(std::min(comma + 1, rest.size()));
      }
    }
    if (equal_ignoring_case(h.name, "expect")) {
      if (!equal_ignoring_case(h.value, "100-continue")) {
        return fail(417, "an expectation other than 100-continue");
      }
      expects_continue_ = !request_.http10;
    }
  }
  return true;
}

bool HttpParser::add_to_body(std::string_view bytes) {
  if (static_cast<int64_t>(request_.body.size() + bytes.size()) > limits_.body_bytes) {
    return fail(413, "the body is too large");
  }
  request_.body += bytes;
  return true;
}

size_t HttpParser::push_body(std::string_view bytes) {
  const std::string_view part = bytes.substr(0, static_cast<size_t>(left_));
  add_to_body(part);
  left_ -= static_cast<int64_t>(part.size());
  if (left_ == 0 && state_ != State::kError) state_ = State::kDone;
  return part.size();
}

size_t HttpParser::push_chunk(std::string_view bytes) {
  size_t i = 0;
  while (i < bytes.size() && state_ == State::kBody) {
    if (chunk_ == Chunk::kData) {
      const std::string_view part = bytes.substr(i, static_cast<size_t>(left_));
      add_to_body(part);
      left_ -= static_cast<int64_t>(part.size());
      i += part.size();
      if (left_ == 0) chunk_ = Chunk::kDataCr;
      continue;
    }
    const char c = bytes[i++];
    switch (chunk_) {
      case Chunk::kSize:
        on_size_byte(c);
        break;
      case Chunk::kSizeSpace:
        if (c == ';') chunk_ = Chunk::kExtension;
        if (c != ';' && c != ' ' && c != '\t') fail(400, "a chunk's size is malformed");
        if (++extension_bytes_ > kMaxExtensionBytes) fail(400, "chunk extensions are too long");
        break;
      case Chunk::kExtension:
        on_extension_byte(c);
        break;
      case Chunk::kSizeEnd:
        if (c != '\n') fail(400, "a chunk's size does not end in CR LF");
        end_size_line();
        break;
      case Chunk::kDataCr:
        if (c != '\r') fail(400, "a chunk is longer than its size");
        chunk_ = Chunk::kDataLf;
        break;
      case Chunk::kDataLf:
        if (c != '\n') fail(400, "a chunk does not end in CR LF");
        chunk_ = Chunk::kSize;
        break;
      default:
        on_trailer_byte(c);
        break;
    }
  }
  return i;
}

bool HttpParser::on_size_byte(char c) {
  if (hex_value(c) >= 0) {
    line_ += c;
    return line_.size() <= kMaxChunkDigits || fail(400, "a chunk's size is too large");
  }
  if (line_.empty()) return fail(400, "a chunk's size is malformed");
  if (c == '\r') {
    chunk_ = Chunk::kSizeEnd;
  } else if (c == ';') {
    chunk_ = Chunk::kExtension;
  } else if (c == ' ' || c == '\t') {
    chunk_ = Chunk::kSizeSpace;  // only before an extension
  } else {
    return fail(400, "a chunk's size is malformed");
  }
  return true;
}

bool HttpParser::on_extension_byte(char c) {
  if (++extension_bytes_ > kMaxExtensionBytes) return fail(400, "chunk extensions are too long");
  if (c == '\r') {
    chunk_ = Chunk::kSizeEnd;
  } else if (!is_value_char(c)) {
    return fail(400, "a control character in a chunk extension");
  }
  return true;
}

void HttpParser::end_size_line() {
  left_ = 0;
  for (const char c : line_) left_ = left_ * 16 + hex_value(c);
  line_.clear();
  chunk_ = left_ > 0 ? Chunk::kData : Chunk::kTrailer;
}

// Trailers are checked and dropped.
bool HttpParser::on_trailer_byte(char c) {
  if (++trailer_bytes_ > kMaxTrailerBytes) return fail(431, "the trailer is too large");
  line_ += c;
  if (c != '\n') {
    const bool cr_alone = line_.size() > 1 && line_[line_.size() - 2] == '\r';
    return !cr_alone || fail(400, "CR without LF");
  }
  if (!line_.ends_with("\r\n")) return fail(400, "a line ends in LF without CR");
  if (line_ == "\r\n") {
    state_ = State::kDone;
    return true;
  }
  HttpHeader field;
  if (!parse_field(std::string_view(line_).substr(0, line_.size() - 2), field)) return false;
  if (is_forbidden_trailer(field.name)) return fail(400, "a field that may not be in a trailer");
  line_.clear();
  return true;
}

}  // namespace tamis::server
