// The results of a benchmark as one HTML page that needs no other file.
#pragma once

#include <string>
#include <vector>

namespace tamis::cli {

struct BenchPage {
  std::string title;
  std::vector<std::string> notes;    // paragraphs above the table
  std::vector<std::string> columns;  // the first ones may hold text, later ones numbers
  struct Row {
    std::vector<std::string> cells;
    double bar = 0;  // 0 .. 1: drawn behind the last cell
  };
  std::vector<Row> rows;
};

std::string bench_html(const BenchPage& page);

// Writes the page under a temporary name and renames it; DeviceError if the disk refuses.
void write_bench_page(const BenchPage& page, const std::string& path);

}  // namespace tamis::cli
