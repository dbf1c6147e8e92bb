// Decode steps of a device, recorded: the second step of a shape is recorded, later ones are one
// launch. Only what depends on nothing but the key may be run this way.
#pragma once

#include <cstdint>
#include <list>
#include <vector>

#include "base/function_ref.h"
#include "model/place.h"
#include "tensor/cuda/graph.h"

namespace tamis {

class StepGraphs {
 public:
  static constexpr size_t kMost = 128;  // the least recently used one goes

  // All that the work's operations depend on, but for the contents of memory.
  using Key = std::vector<int64_t>;

  // Puts `work` on the stream of the place's device. The first time of a key, and the first after a
  // buffer of the place or the device's scratch memory has moved, it is called; then it is
  // recorded; then its record runs.
  void run(const Place& place, const Key& key, FunctionRef<void()> work);

  int64_t recordings() const { return recordings_; }

 private:
  struct Step {
    Key key;
    int64_t moves = 0;  // of the place, and the device's scratch memory, after the last call
    std::vector<const void*> scratch;
    DeviceGraph graph;
  };

  std::list<Step> steps_;  // most recently used first
  int64_t recordings_ = 0;
};

}  // namespace tamis
