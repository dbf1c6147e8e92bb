// The page that the server shows to a browser: plain files of src/server/web, part of the program.
// They hold no data, so they need no key; what the page fetches does.
//
//   if (web_path(request.path)) return web_response(request);
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/http.h"

namespace tamis::server {

struct EmbeddedFile {
  std::string_view name;  // "app.js"
  std::string_view body;
};
// Written by web/embed.cmake when the program is built.
const std::vector<EmbeddedFile>& embedded_files();

// "/" and "/web/NAME" of each file.
bool web_path(std::string_view path);
// The file of such a path, or 304 when the browser already has it (RFC 9110, 13.1.2).
HttpResponse web_response(const HttpRequest& request);

}  // namespace tamis::server
