// A checkpoint of the repository, quantised into a temporary folder.
#pragma once

#include <string>

#include "checkpoint/convert.h"
#include "convert/folders.h"

namespace tamis {

class QuantisedCheckpoint {
 public:
  // `source` is relative to the repository.
  QuantisedCheckpoint(const std::string& source, NumberFormat to) {
    ConvertOptions options;
    options.in = std::string(TAMIS_SOURCE_DIR) + "/" + source;
    options.out = path();
    options.to = to;
    options.threads = 2;
    convert(options);
  }

  std::string path() const { return folder_.path("model"); }

 private:
  convert_test::TemporaryFolder folder_;
};

}  // namespace tamis
