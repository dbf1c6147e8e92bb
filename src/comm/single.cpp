#include <cstring>

#include "comm/group.h"

namespace tamis {
namespace {

class SingleGroup final : public Group {
 public:
  SingleGroup() : Group(0, 1) {}
  void abandon(int) override {}

 private:
  void exchange(const Call&, std::span<const std::span<const std::byte>> to,
                std::span<const std::span<std::byte>> from) override {
    if (!to[0].empty()) std::memmove(from[0].data(), to[0].data(), to[0].size());
  }
  // Group refuses messages to oneself, and there is no other rank.
  void send_to(const Call&, std::span<const std::byte>, int) override {}
  void recv_from(const Call&, std::span<std::byte>, int) override {}
  std::unique_ptr<Group> part(int, std::span<const int>) override { return single_group(); }
};

}  // namespace

std::unique_ptr<Group> single_group() { return std::make_unique<SingleGroup>(); }

}  // namespace tamis
