#include "server/web_page.h"

#include <openssl/sha.h>

#include <array>

#include "base/error.h"

namespace tamis::server {
namespace {

constexpr std::string_view kFolder = "/web/";
constexpr std::string_view kIndex = "index.html";

// Only the page's own files run, and it speaks only to where it came from: text that a model wrote
// could not start a script or call another host even if it became markup.
constexpr const char* kPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for "
    "'script'";

struct WebFile {
  std::string path, content_type, etag;
  std::string_view body;
};

std::string type_of(std::string_view name) {
  if (name.ends_with(".html")) return "text/html; charset=utf-8";
  if (name.ends_with(".js")) return "text/javascript; charset=utf-8";
  if (name.ends_with(".css")) return "text/css; charset=utf-8";
  return "image/svg+xml";
}

std::string etag_of(std::string_view body) {
  constexpr size_t kBytes = 12;
  constexpr char kHex[] = "0123456789abcdef";
  std::array<unsigned char, 32> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(body.data()), body.size(), digest.data());
  std::string out = "\"";
  for (size_t i = 0; i < kBytes; ++i) {
    out += kHex[digest[i] >> 4];
    out += kHex[digest[i] & 15];
  }
  return out + "\"";
}

const std::vector<WebFile>& files() {
  static const std::vector<WebFile> kFiles = [] {
    std::vector<WebFile> out;
    for (const EmbeddedFile& f : embedded_files()) {
      const std::string path = f.name == kIndex ? "/" : std::string(kFolder).append(f.name);
      out.push_back({path, type_of(f.name), etag_of(f.body), f.body});
    }
    return out;
  }();
  return kFiles;
}

const WebFile* find_file(std::string_view path) {
  for (const WebFile& f : files()) {
    if (f.path == path) return &f;
  }
  return nullptr;
}

// If-None-Match: "*", or a list of tags, which are compared weakly.
bool has_it(const HttpRequest& request, const WebFile& file) {
  const std::string* tags = request.header("if-none-match");
  return tags != nullptr && (*tags == "*" || tags->find(file.etag) != std::string::npos);
}

}  // namespace

bool web_path(std::string_view path) { return find_file(path) != nullptr; }

HttpResponse web_response(const HttpRequest& request) {
  const WebFile* file = find_file(request.path);
  if (file == nullptr) throw UsageError("web_response: no such file");
  HttpResponse response;
  // Asked for each time, answered with 304: a new program never runs with an old script.
  response.headers = {{"Cache-Control", "no-cache"}, {"ETag", file->etag}};
  if (has_it(request, *file)) {
    response.status = 304;
    response.content_type.clear();
    return response;
  }
  response.content_type = file->content_type;
  response.headers.push_back({"Content-Security-Policy", kPolicy});
  response.headers.push_back({"Referrer-Policy", "no-referrer"});
  response.headers.push_back({"Cross-Origin-Opener-Policy", "same-origin"});
  response.body = file->body;
  return response;
}

}  // namespace tamis::server
