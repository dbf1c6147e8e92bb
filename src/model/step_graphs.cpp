#include "model/step_graphs.h"

#include <algorithm>

namespace tamis {

namespace {

std::vector<const void*> scratch_of(DeviceContext& device) {
  std::vector<const void*> addresses;
  for (int slot = 0; slot < DeviceContext::kSlots; ++slot) {
    addresses.push_back(device.scratch(slot, 0));
  }
  return addresses;
}

}  // namespace

void StepGraphs::run(const Place& place, const Key& key, FunctionRef<void()> work) {
  DeviceContext& device = *place.device;
  const auto found =
      std::find_if(steps_.begin(), steps_.end(), [&](const Step& s) { return s.key == key; });
  if (found == steps_.end()) {
    if (steps_.size() == kMost) steps_.pop_back();
    steps_.emplace_front();
    steps_.front().key = key;
  } else {
    steps_.splice(steps_.begin(), steps_, found);
  }
  Step& step = steps_.front();
  if (step.scratch.empty() || step.moves != place.moves || step.scratch != scratch_of(device)) {
    step.graph = DeviceGraph();
    work();
    step.moves = place.moves;
    step.scratch = scratch_of(device);
    return;
  }
  if (!step.graph.recorded()) {
    step.graph = DeviceGraph(device, work);
    ++recordings_;
  }
  step.graph.launch(device);
}

}  // namespace tamis
