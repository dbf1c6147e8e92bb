// Flags of commands that may guess tokens ahead: --speculative, --num-speculative-tokens.
#pragma once

#include <cstdint>
#include <string>

#include "engine/engine.h"

namespace CLI {
class App;
}

namespace tamis::cli {

struct SpeculationFlags {
  std::string method = "off";
  int64_t tokens = 1;

  void add_to(CLI::App& app);
  bool on() const { return method == "mtp"; }  // the model is to be loaded with the layer
  void apply(EngineOptions& options) const;
};

}  // namespace tamis::cli
