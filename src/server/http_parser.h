// A strict reader of HTTP/1.1 requests that does no input itself.
//
//   HttpParser parser(limits);
//   used = parser.push(bytes);                    // stops after the head, and after the message
//   if (parser.state() == HttpParser::State::kHeadDone) { look at parser.request(); resume(); }
//
// What the standard lets a server tolerate (bare LF, folded headers, spaces before a colon, several
// lengths, unknown transfer codings) is refused here: two readers that tolerate different things
// can be made to see different requests in the same bytes. The result does not depend on how the
// bytes are cut. Memory is bounded by the limits.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "server/http.h"

namespace tamis::server {

struct HttpLimits {
  int64_t head_bytes = 64 << 10;
  int64_t url_bytes = 8 << 10;
  int64_t fields = 100;
  int64_t body_bytes = 32 << 20;  // decoded
};

class HttpParser {
 public:
  enum class State { kHead, kHeadDone, kBody, kDone, kError };

  explicit HttpParser(const HttpLimits& limits) : limits_(limits) {}

  // Returns the number of bytes it used: fewer than given when the head or the message ended.
  size_t push(std::string_view bytes);
  // After kHeadDone: on to the body, or to kDone if there is none.
  void resume();

  State state() const { return state_; }
  bool started() const { return !head_.empty(); }
  HttpRequest& request() { return request_; }
  bool keep_alive() const { return keep_alive_; }
  bool expects_continue() const { return expects_continue_; }
  // -1 for a chunked body.
  int64_t content_length() const { return chunked_ ? -1 : left_; }

  // Of kError. The message has nothing of the input in it.
  int error_status() const { return error_status_; }
  std::string_view error() const { return error_; }

 private:
  enum class Chunk { kSize, kSizeSpace, kExtension, kSizeEnd, kData, kDataCr, kDataLf, kTrailer };

  // Returns false, so that a check can end with it.
  bool fail(int status, std::string_view message);
  size_t push_head(std::string_view bytes);
  bool on_head_byte(char c);
  size_t push_body(std::string_view bytes);
  size_t push_chunk(std::string_view bytes);
  bool on_size_byte(char c);
  void end_size_line();
  bool on_extension_byte(char c);
  bool on_trailer_byte(char c);
  bool add_to_body(std::string_view bytes);

  bool parse_head();
  bool parse_request_line(std::string_view line);
  bool parse_field(std::string_view line, HttpHeader& out);
  bool parse_target(std::string_view target);
  bool check_framing();
  bool check_host();
  bool read_connection();

  HttpLimits limits_;
  State state_ = State::kHead;
  HttpRequest request_;
  std::string head_;  // bytes of the head so far, from the first that is not an empty line
  std::string absolute_authority_;
  int64_t lines_ = 0, empty_lines_ = 0;
  bool keep_alive_ = true, expects_continue_ = false, chunked_ = false;
  int64_t left_ = 0;  // of the body, or of the chunk

  Chunk chunk_ = Chunk::kSize;
  std::string line_;  // of a size or a trailer
  int64_t extension_bytes_ = 0, trailer_bytes_ = 0;
  char previous_ = 0;

  int error_status_ = 0;
  std::string_view error_;
};

}  // namespace tamis::server
