#include <algorithm>

#include "comm/group.h"

namespace tamis {
namespace {

class SingleGroup final : public Group {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  void all_reduce(std::span<float>) override {}
  void all_gather(std::span<const float> in, std::span<float> out) override {
    std::copy(in.begin(), in.end(), out.begin());
  }
  void broadcast(std::span<std::byte>, int) override {}
  void barrier() override {}
};

}  // namespace

std::unique_ptr<Group> single_group() { return std::make_unique<SingleGroup>(); }

}  // namespace tamis
