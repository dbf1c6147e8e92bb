// Who may speak to the server: keys, the Host of a request, pages of other sites.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "server/http.h"

namespace tamis::server {

struct AccessOptions {
  std::vector<std::string> keys;     // none: everybody may
  std::vector<std::string> hosts;    // accepted in Host beside the loopback names; "*": any
  std::vector<std::string> origins;  // sites whose pages may read answers
  bool check_host = true;
};

class AccessControl {
 public:
  explicit AccessControl(AccessOptions options);

  // The number of the key that the request shows: 0 without keys, -1 for none or a wrong one. The
  // time does not depend on how much of a key is right.
  int key_of(const HttpRequest& request) const;
  // False for a Host that is not ours: a page whose name was made to point here.
  bool host_allowed(const HttpRequest& request) const;
  // The origin to allow in the answer; empty for none.
  std::string allowed_origin(const HttpRequest& request) const;
  // A browser sends it on behalf of another site's page.
  bool cross_site(const HttpRequest& request) const;

 private:
  using Digest = std::array<unsigned char, 32>;
  static Digest digest_of(std::string_view key);

  AccessOptions options_;
  std::vector<Digest> digests_;
};

// One key a line; empty lines and lines that begin with # do not count. InputError for a file that
// cannot be read, has no key, or one of less than 8 characters.
std::vector<std::string> read_key_file(const std::string& path);

}  // namespace tamis::server
