#include "server/access.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/sha.h>

#include <algorithm>

#include "base/error.h"
#include "base/json.h"

namespace tamis::server {
namespace {

constexpr size_t kMaxKeyBytes = 4096;

// The password of "Basic" credentials, which is how a browser sends a key.
std::string basic_password(std::string_view encoded) {
  if (encoded.size() > kMaxKeyBytes || encoded.size() % 4 != 0) return {};
  std::string decoded(encoded.size() / 4 * 3 + 1, '\0');
  const int n = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(decoded.data()),
                                reinterpret_cast<const unsigned char*>(encoded.data()),
                                static_cast<int>(encoded.size()));
  if (n < 0) return {};
  decoded.resize(static_cast<size_t>(n));
  while (!decoded.empty() && decoded.back() == '\0') decoded.pop_back();
  const size_t colon = decoded.find(':');
  return colon == std::string::npos ? std::string() : decoded.substr(colon + 1);
}

std::string shown_key(const HttpRequest& request) {
  if (const std::string* key = request.header("x-api-key")) return *key;
  const std::string* authorization = request.header("authorization");
  if (authorization == nullptr) return {};
  const std::string_view text = *authorization;
  const size_t space = text.find(' ');
  if (space == std::string_view::npos) return {};
  const std::string_view scheme = text.substr(0, space), rest = text.substr(space + 1);
  if (equal_ignoring_case(scheme, "bearer")) return std::string(rest);
  if (equal_ignoring_case(scheme, "basic")) return basic_password(rest);
  return {};
}

std::string_view without_port(std::string_view host) {
  if (host.starts_with('[')) return host.substr(0, std::min(host.find(']') + 1, host.size()));
  return host.substr(0, host.find(':'));
}

}  // namespace

AccessControl::AccessControl(AccessOptions options) : options_(std::move(options)) {
  for (const std::string& key : options_.keys) digests_.push_back(digest_of(key));
  options_.keys.clear();
}

AccessControl::Digest AccessControl::digest_of(std::string_view key) {
  Digest d{};
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), d.data());
  return d;
}

int AccessControl::key_of(const HttpRequest& request) const {
  if (digests_.empty()) return 0;
  const std::string key = shown_key(request);
  const Digest shown = digest_of(std::string_view(key).substr(0, kMaxKeyBytes));
  int found = -1;
  for (size_t i = 0; i < digests_.size(); ++i) {
    if (CRYPTO_memcmp(shown.data(), digests_[i].data(), shown.size()) == 0) {
      found = static_cast<int>(i);
    }
  }
  return key.empty() || key.size() > kMaxKeyBytes ? -1 : found;
}

bool AccessControl::host_allowed(const HttpRequest& request) const {
  if (!options_.check_host) return true;
  const std::string* host = request.header("host");
  if (host == nullptr) return true;  // HTTP/1.0: no browser
  const std::string_view name = without_port(*host);
  for (const std::string_view known : {"localhost", "127.0.0.1", "[::1]"}) {
    if (equal_ignoring_case(name, known)) return true;
  }
  return std::any_of(options_.hosts.begin(), options_.hosts.end(), [&](const std::string& h) {
    return h == "*" || equal_ignoring_case(name, h) || equal_ignoring_case(*host, h);
  });
}

std::string AccessControl::allowed_origin(const HttpRequest& request) const {
  const std::string* origin = request.header("origin");
  if (origin == nullptr) return {};
  const auto& list = options_.origins;
  return std::find(list.begin(), list.end(), *origin) != list.end() ? *origin : std::string();
}

bool AccessControl::cross_site(const HttpRequest& request) const {
  const std::string* site = request.header("sec-fetch-site");
  const std::string* mode = request.header("sec-fetch-mode");
  if (site == nullptr || *site == "same-origin" || *site == "none") return false;
  // Following a link to the page is harmless; fetching from another site's script is not.
  if (mode != nullptr && *mode == "navigate" && request.method == "GET") return false;
  return allowed_origin(request).empty();
}

std::vector<std::string> read_key_file(const std::string& path) {
  constexpr size_t kMinKey = 8;
  const std::string text = read_text_file(path, 1 << 20);
  std::vector<std::string> keys;
  size_t line_number = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string line = text.substr(at, end - at);
    at = end + 1;
    ++line_number;
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (line.empty() || line[0] == '#') continue;
    if (line.size() < kMinKey || line.size() > kMaxKeyBytes) {
      throw InputError(path + ": line " + std::to_string(line_number) + ": want a key of " +
                       std::to_string(kMinKey) + " to " + std::to_string(kMaxKeyBytes) +
                       " characters");
    }
    keys.push_back(std::move(line));
  }
  if (keys.empty()) throw InputError(path + ": has no key");
  return keys;
}

}  // namespace tamis::server
