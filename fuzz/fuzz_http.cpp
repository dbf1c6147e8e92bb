// Bytes of an HTTP connection from anywhere. The first byte chooses the limits and how the bytes
// are cut. The cut changes nothing; what was read keeps within the limits; written down again in
// the strictest form, it is read as the same request, and nothing is left over.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "server/http_parser.h"

namespace {

using tamis::server::equal_ignoring_case;
using tamis::server::HttpHeader;
using tamis::server::HttpLimits;
using tamis::server::HttpParser;
using tamis::server::HttpRequest;
using State = HttpParser::State;

void require(bool holds) {
  if (!holds) std::abort();
}

struct Outcome {
  State state = State::kHead;
  int status = 0;
  std::string_view error;
  size_t used = 0;
  bool keep_alive = false;
  HttpRequest request;
};

bool same_headers(const std::vector<HttpHeader>& a, const std::vector<HttpHeader>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.name == y.name && x.value == y.value;
  });
}

bool same_request(const HttpRequest& a, const HttpRequest& b) {
  return a.method == b.method && a.path == b.path && a.query == b.query && a.body == b.body &&
         a.http10 == b.http10 && same_headers(a.headers, b.headers);
}

// One message, in pieces whose sizes the text and `cut` choose; 0: in one piece.
Outcome read(std::string_view bytes, const HttpLimits& limits, uint8_t cut) {
  HttpParser parser(limits);
  Outcome o;
  while (o.used < bytes.size()) {
    std::string_view part = bytes.substr(o.used);
    if (cut != 0) part = part.substr(0, 1 + static_cast<uint8_t>(part[0] * cut) % 7);
    const size_t used = parser.push(part);
    require(used <= part.size());
    o.used += used;
    if (parser.state() == State::kHeadDone) {
      require(parser.request().body.empty());
      parser.resume();
    } else if (parser.state() == State::kError || parser.state() == State::kDone) {
      break;
    } else {
      require(used == part.size());
    }
  }
  o.state = parser.state();
  o.status = parser.error_status();
  o.error = parser.error();
  o.keep_alive = parser.keep_alive();
  o.request = parser.request();
  // It has ended, and takes no more.
  if (o.state == State::kDone || o.state == State::kError) require(parser.push("GET ") == 0);
  return o;
}

void check_limits(const HttpRequest& r, const HttpLimits& limits) {
  require(static_cast<int64_t>(r.body.size()) <= limits.body_bytes);
  require(static_cast<int64_t>(r.headers.size()) <= limits.fields);
  require(static_cast<int64_t>(r.path.size() + r.query.size()) <= limits.url_bytes);
  int hosts = 0;
  for (const HttpHeader& h : r.headers) {
    hosts += equal_ignoring_case(h.name, "host") ? 1 : 0;
    for (const char c : h.name + h.value) {
      require(c == '\t' || static_cast<unsigned char>(c) >= 0x20);
      require(c != 0x7f);
    }
  }
  require(hosts == 1 || (r.http10 && hosts == 0));
}

// The body by its length, whatever its form was.
std::string written(const HttpRequest& r) {
  const auto framing = [](const HttpHeader& h) {
    return equal_ignoring_case(h.name, "transfer-encoding") ||
           equal_ignoring_case(h.name, "content-length");
  };
  std::string text = r.method + " " + r.path + (r.query.empty() ? "" : "?" + r.query) +
                     (r.http10 ? " HTTP/1.0\r\n" : " HTTP/1.1\r\n");
  for (const HttpHeader& h : r.headers) {
    if (!framing(h)) text += h.name + ": " + h.value + "\r\n";
  }
  return text + "Content-Length: " + std::to_string(r.body.size()) + "\r\n\r\n" + r.body;
}

void check_again(const Outcome& first) {
  HttpRequest want = first.request;
  const std::string text = written(want);
  HttpLimits roomy;  // a length may be a field more than there were
  ++roomy.fields;
  roomy.head_bytes += 64;
  const Outcome again = read(text, roomy, 0);
  require(again.state == State::kDone && again.used == text.size());
  require(again.keep_alive == first.keep_alive);
  std::vector<HttpHeader> headers = again.request.headers;
  const auto framing = [](const HttpHeader& h) {
    return equal_ignoring_case(h.name, "transfer-encoding") ||
           equal_ignoring_case(h.name, "content-length");
  };
  std::erase_if(headers, framing);
  std::erase_if(want.headers, framing);
  require(same_headers(headers, want.headers));
  want.headers = again.request.headers;
  require(same_request(again.request, want));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  HttpLimits limits;
  if ((data[0] & 1) != 0) {
    limits.head_bytes = 120;
    limits.url_bytes = 20;
    limits.fields = 4;
    limits.body_bytes = 9;
  }
  std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  // One message after the other, as a connection has them.
  while (!rest.empty()) {
    const Outcome whole = read(rest, limits, 0);
    const Outcome cut = read(rest, limits, data[0] | 1);
    require(whole.state == cut.state && whole.status == cut.status && whole.error == cut.error);
    require((whole.state == State::kError) == (whole.status >= 400 && whole.status < 600));
    if (whole.state != State::kDone) break;
    require(whole.used == cut.used && whole.keep_alive == cut.keep_alive);
    require(same_request(whole.request, cut.request));
    check_limits(whole.request, limits);
    check_again(whole);
    require(whole.used > 0);
    rest.remove_prefix(whole.used);
  }
  return 0;
}
