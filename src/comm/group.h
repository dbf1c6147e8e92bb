// A group of ranks that work on one model. A group of one is the ordinary case; code that uses a
// Group has no "if distributed".
//
// Every call is collective: all ranks make the same calls in the same order with the same sizes.
// Sums run in rank order, so every rank gets the same bits.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

namespace tamis {

class Group {
 public:
  virtual ~Group() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // data = sum over ranks, in place.
  virtual void all_reduce(std::span<float> data) = 0;
  // out = in of rank 0, in of rank 1, ...; out.size() == in.size() * size().
  virtual void all_gather(std::span<const float> in, std::span<float> out) = 0;
  // data of rank `root` to all.
  virtual void broadcast(std::span<std::byte> data, int root) = 0;
  virtual void barrier() = 0;
};

// The group of one.
std::unique_ptr<Group> single_group();

}  // namespace tamis
