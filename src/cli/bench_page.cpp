#include "cli/bench_page.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/atomic_file.h"

namespace tamis::cli {
namespace {

constexpr const char* kStyle =
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}"
    "th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #8884;white-space:nowrap}"
    "th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}"
    "td:last-child{background:linear-gradient(90deg,#4a90d966 var(--p),transparent var(--p))}"
    "@media(prefers-color-scheme:dark){body{background:#16181c;color:#ddd}}";

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

}  // namespace

std::string bench_html(const BenchPage& page) {
  std::string out = fmt::format(
      "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width\"><title>{0}</title>"
      "<style>{1}</style>\n<h1>{0}</h1>\n",
      escaped(page.title), kStyle);
  for (const std::string& note : page.notes) out += "<p>" + escaped(note) + "</p>\n";
  out += "<table>\n<tr>";
  for (const std::string& c : page.columns) out += "<th>" + escaped(c) + "</th>";
  out += "</tr>\n";
  for (const BenchPage::Row& row : page.rows) {
    out += fmt::format("<tr style=\"--p:{:.0f}%\">", 100 * std::clamp(row.bar, 0.0, 1.0));
    for (const std::string& c : row.cells) out += "<td>" + escaped(c) + "</td>";
    out += "</tr>\n";
  }
  return out + "</table>\n</html>\n";
}

void write_bench_page(const BenchPage& page, const std::string& path) {
  write_file_atomically(path, bench_html(page));
}

}  // namespace tamis::cli
