// tensor/cuda of a build without CUDA: nothing can be made, so nothing else is reached.
#include "base/error.h"
#include "tensor/cuda/device.h"
#include "tensor/cuda/graph.h"

namespace tamis {
namespace {

[[noreturn]] void refuse() {
  throw DeviceError(
      "this build has no CUDA: configure with 'cmake --preset cuda' (needs nvcc), or run with "
      "--backend cpu");
}

}  // namespace

bool cuda_built() { return false; }
std::vector<DeviceInfo> cuda_devices() { refuse(); }

DeviceContext::DeviceContext(int) { refuse(); }
DeviceContext::~DeviceContext() = default;
void* DeviceContext::scratch(int, int64_t) { refuse(); }
int64_t DeviceContext::scratch_bytes() const { return 0; }
void DeviceContext::upload(void*, const void*, int64_t) { refuse(); }
void DeviceContext::download(void*, const void*, int64_t) { refuse(); }
void DeviceContext::copy(void*, const void*, int64_t) { refuse(); }
void DeviceContext::fill(void*, int, int64_t) { refuse(); }
void DeviceContext::synchronize() { refuse(); }

DeviceBuffer::DeviceBuffer(DeviceContext&, int64_t, const char*) { refuse(); }
DeviceBuffer::DeviceBuffer(DeviceBuffer&&) noexcept {}
DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&&) noexcept { return *this; }
DeviceBuffer::~DeviceBuffer() = default;

DeviceGraph::DeviceGraph(DeviceContext&, FunctionRef<void()>) { refuse(); }
DeviceGraph::DeviceGraph(DeviceGraph&&) noexcept {}
DeviceGraph& DeviceGraph::operator=(DeviceGraph&&) noexcept { return *this; }
DeviceGraph::~DeviceGraph() = default;
void DeviceGraph::launch(DeviceContext&) const { refuse(); }

PinnedBuffer::PinnedBuffer(DeviceContext&, int64_t) { refuse(); }
PinnedBuffer::PinnedBuffer(PinnedBuffer&&) noexcept {}
PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&&) noexcept { return *this; }
PinnedBuffer::~PinnedBuffer() = default;

}  // namespace tamis
