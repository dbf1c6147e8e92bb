// The web page as the server sends it; tests/server/web_page_test.py tries it in a browser.
#include "server/live.h"
#include "server/web_page.h"

namespace tamis::server {
namespace {

std::string fetch(const Live& live, const std::string& path, const std::string& more = "",
                  const std::string& method = "GET") {
  Socket s(live);
  s.send(method + " " + path + " HTTP/1.1\r\nHost: localhost\r\n" + more + kClose + "\r\n");
  return s.read_all();
}

std::string header_of(const std::string& answer, const std::string& name) {
  const std::string head = answer.substr(0, answer.find("\r\n\r\n") + 2);
  const size_t at = head.find("\r\n" + name + ": ");
  if (at == std::string::npos) return {};
  const size_t from = at + name.size() + 4;
  return head.substr(from, head.find("\r\n", from) - from);
}

std::string path_of(const EmbeddedFile& file) {
  return file.name == "index.html" ? "/" : "/web/" + std::string(file.name);
}

TEST(WebPage, FilesGoOutAsTheyAreWithTheirTypeAndPolicy) {
  Live live;
  EXPECT_GE(embedded_files().size(), 5U);
  for (const EmbeddedFile& file : embedded_files()) {
    SCOPED_TRACE(file.name);
    const std::string answer = fetch(live, path_of(file));
    EXPECT_EQ(status_of(answer), 200);
    EXPECT_EQ(body_of(answer), file.body);
    const std::string type = header_of(answer, "Content-Type");
    const std::string_view name = file.name;
    EXPECT_EQ(type, name.ends_with(".html")  ? "text/html; charset=utf-8"
                    : name.ends_with(".js")  ? "text/javascript; charset=utf-8"
                    : name.ends_with(".css") ? "text/css; charset=utf-8"
                                             : "image/svg+xml");
    const std::string policy = header_of(answer, "Content-Security-Policy");
    EXPECT_NE(policy.find("default-src 'none'"), std::string::npos) << policy;
    EXPECT_EQ(policy.find("unsafe"), std::string::npos) << policy;
    EXPECT_EQ(header_of(answer, "Cache-Control"), "no-cache");
    EXPECT_EQ(header_of(answer, "X-Content-Type-Options"), "nosniff");
  }
}

TEST(WebPage, FilesNameNoOtherHostAndMakeNoMarkupOfText) {
  for (const EmbeddedFile& file : embedded_files()) {
    std::string text(file.body);
    // The name of a format, which nobody fetches.
    const std::string svg = "http://www.w3.org/2000/svg";
    if (const size_t at = text.find(svg); at != std::string::npos) text.erase(at, svg.size());
    for (const char* banned : {"http:", "https:", "src=\"//", "@import", "innerHTML", "outerHTML",
                               "insertAdjacentHTML", "document.write", "eval(", "new Function"}) {
      EXPECT_EQ(text.find(banned), std::string::npos) << file.name << " has " << banned;
    }
  }
}

TEST(WebPage, HeadAndConditionalRequestsHaveNoBody) {
  Live live;
  const std::string whole = fetch(live, "/");
  const std::string head = fetch(live, "/", "", "HEAD");
  EXPECT_EQ(status_of(head), 200);
  EXPECT_EQ(body_of(head), "");
  for (const char* name : {"Content-Length", "Content-Type", "ETag"}) {
    EXPECT_EQ(header_of(head, name), header_of(whole, name)) << name;
  }
  const std::string tag = header_of(whole, "ETag");
  ASSERT_EQ(tag.size(), 26U) << tag;
  for (const std::string& same : {tag, "W/" + tag, "\"x\", " + tag, std::string("*")}) {
    const std::string answer = fetch(live, "/", "If-None-Match: " + same + "\r\n");
    EXPECT_EQ(status_of(answer), 304) << same;
    EXPECT_EQ(body_of(answer), "");
    EXPECT_EQ(header_of(answer, "ETag"), tag);
    EXPECT_EQ(header_of(answer, "Content-Length"), "");
  }
  EXPECT_EQ(status_of(fetch(live, "/", "If-None-Match: \"0123456789abcdef01234567\"\r\n")), 200);
  // A 304 leaves the connection as it was.
  Socket s(live);
  s.send(get("/", "If-None-Match: " + tag + "\r\n") + get("/livez", kClose));
  const std::string both = s.read_all();
  EXPECT_EQ(status_of(both), 304);
  EXPECT_NE(both.find("HTTP/1.1 200 OK"), std::string::npos) << both;
}

TEST(WebPage, NeedsNoKeyAndOpensNothingElse) {
  AppOptions options;
  options.access.keys = {"a-key-of-the-test"};
  Live live(options);
  EXPECT_EQ(status_of(fetch(live, "/")), 200);
  EXPECT_EQ(status_of(fetch(live, "/web/app.js")), 200);
  for (const char* path :
       {"/web/", "/web/index.html", "/web/embed.cmake", "/web/../props", "/web/app.js/",
        "/web/nothing.js", "/index.html", "/props", "/v1/models"}) {
    EXPECT_EQ(status_of(fetch(live, path)), 401) << path;
  }
  const std::string key = "Authorization: Bearer a-key-of-the-test\r\n";
  for (const char* path :
       {"/web/", "/web/index.html", "/web/embed.cmake", "/web/nothing.js", "/index.html"}) {
    EXPECT_EQ(status_of(fetch(live, path, key)), 404) << path;
  }
  EXPECT_EQ(status_of(fetch(live, "/props", key)), 200);
  EXPECT_EQ(status_of(fetch(live, "/", key + "Content-Length: 0\r\n", "POST")), 405);
  EXPECT_EQ(status_of(fetch(live, "/web/app.js", key, "DELETE")), 405);
  // A stranger's page may link to it, not read it; and it goes by no other name.
  EXPECT_EQ(status_of(fetch(live, "/", "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\n")),
            403);
  EXPECT_EQ(
      status_of(fetch(live, "/", "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n")),
      200);
  Socket s(live);
  s.send("GET / HTTP/1.1\r\nHost: other.example\r\n" + kClose + "\r\n");
  EXPECT_EQ(status_of(s.read_all()), 421);
}

TEST(WebPage, AsksScriptsForAKeyWithoutTheBrowsersDialogue) {
  AppOptions options;
  options.access.keys = {"a-key-of-the-test"};
  Live live(options);
  const std::string same = "Sec-Fetch-Site: same-origin\r\n";
  const std::string script = fetch(live, "/props", same + "Sec-Fetch-Mode: cors\r\n");
  EXPECT_EQ(header_of(script, "WWW-Authenticate").substr(0, 6), "Bearer");
  const std::string person = fetch(live, "/props", same + "Sec-Fetch-Mode: navigate\r\n");
  EXPECT_EQ(header_of(person, "WWW-Authenticate").substr(0, 5), "Basic");
}

}  // namespace
}  // namespace tamis::server
