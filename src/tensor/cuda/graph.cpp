#include "tensor/cuda/graph.h"

#include <utility>

#include "tensor/cuda/check.h"

namespace tamis {

DeviceGraph::DeviceGraph(DeviceContext& device, FunctionRef<void()> work) {
  cudaStream_t stream = device.stream();
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
             "cudaStreamBeginCapture");
  cudaGraph_t graph = nullptr;
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  const cudaError_t code = cudaGraphInstantiate(&graph_, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(code, "cudaGraphInstantiate");
}

DeviceGraph::DeviceGraph(DeviceGraph&& other) noexcept
    : graph_(std::exchange(other.graph_, nullptr)) {}

DeviceGraph& DeviceGraph::operator=(DeviceGraph&& other) noexcept {
  std::swap(graph_, other.graph_);
  return *this;
}

DeviceGraph::~DeviceGraph() {
  if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
}

void DeviceGraph::launch(DeviceContext& device) const {
  check_cuda(cudaGraphLaunch(graph_, device.stream()), "cudaGraphLaunch");
}

}  // namespace tamis
