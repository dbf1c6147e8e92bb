#include "kernels/explain.h"

namespace tamis {

std::vector<std::string> explain(const KernelContext& context) {
  std::vector<std::string> lines;
  for (const Choice& c : context.ran()) {
    lines.push_back(std::string(c.op) + ": " + c.implementation);
  }
  return lines;
}

}  // namespace tamis
