// Timing on the device: CUDA events around replays of a graph of calls.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/workloads/cuda_workloads.h"
#include "tensor/cuda/check.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

constexpr double kPastL2 = 300e6;        // bytes touched before a set's turn comes again
constexpr double kReplaySeconds = 0.02;  // of work in a graph
constexpr int kReplays = 7, kMostCalls = 200, kMostSets = 64;

class Event {
 public:
  Event() { check_cuda(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) {
    check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord");
  }
  double seconds_since(const Event& begin) {
    float milliseconds = 0;
    check_cuda(cudaEventSynchronize(event_), "cudaEventSynchronize");
    check_cuda(cudaEventElapsedTime(&milliseconds, begin.event_, event_), "cudaEventElapsedTime");
    return milliseconds * 1e-3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

template <typename Work>
double seconds_of(cudaStream_t stream, const Work& work) {
  Event begin, end;
  begin.record(stream);
  work();
  end.record(stream);
  return end.seconds_since(begin);
}

template <typename Work>
double median_seconds(cudaStream_t stream, const Work& work) {
  double seconds[kReplays];
  for (double& s : seconds) s = seconds_of(stream, work);
  std::nth_element(seconds, seconds + kReplays / 2, seconds + kReplays);
  return seconds[kReplays / 2];
}

// The stream's calls as a graph, launched again and again.
class Graph {
 public:
  template <typename Work>
  Graph(cudaStream_t stream, const Work& work) : stream_(stream) {
    check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
               "cudaStreamBeginCapture");
    work();
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    check_cuda(cudaGraphInstantiate(&exec_, graph, 0), "cudaGraphInstantiate");
    check_cuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }
  ~Graph() { cudaGraphExecDestroy(exec_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch() const { check_cuda(cudaGraphLaunch(exec_, stream_), "cudaGraphLaunch"); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t exec_ = nullptr;
};

constexpr int kPeakThreads = 256, kPeakSums = 16, kPeakLoops = 4096;

// Independent products from registers; `out` keeps the compiler from dropping them.
__global__ void __launch_bounds__(kPeakThreads) mma_peak_kernel(float* out, uint32_t seed) {
  float sum[kPeakSums][4] = {};
  const uint32_t x = 0x3F803F80u ^ (seed * threadIdx.x & 0x007F007Fu);
  const uint32_t a[4] = {x, x ^ 0x00010001u, x ^ 0x00020002u, x ^ 0x00030003u};
  for (int i = 0; i < kPeakLoops; ++i) {
#pragma unroll
    for (int s = 0; s < kPeakSums; ++s) mma_bf16(sum[s], a, x ^ 0x80000000u, x);
  }
  float total = 0;
  for (int s = 0; s < kPeakSums; ++s) total += sum[s][0] + sum[s][3];
  if (total == 12345.678f) *out = total;
}

}  // namespace

CudaPeak measure_cuda_peak(KernelContext& context) {
  constexpr int64_t kBytes = int64_t{1} << 30;
  cudaStream_t stream = stream_of(context);
  CudaPeak peak;
  {
    const DeviceBuffer from(*context.device(), kBytes, "measuring copies");
    const DeviceBuffer to(*context.device(), kBytes, "measuring copies");
    context.device()->fill(from.data(), 0x3C, kBytes);
    const auto copy = [&] { context.device()->copy(to.data(), from.data(), kBytes); };
    copy();
    peak.bytes_per_second = 2.0 * kBytes / median_seconds(stream, copy);
  }
  const int blocks = context.device()->info().multiprocessors * 2;
  auto* out = static_cast<float*>(device_scratch(context, 0, 4));
  const auto products = [&] {
    mma_peak_kernel<<<static_cast<unsigned>(blocks), kPeakThreads, 0, stream>>>(out, 12345);
    check_launch("mma_peak");
  };
  products();
  const double flops = 2.0 * 16 * 8 * 16 * kPeakSums * kPeakLoops * blocks * (kPeakThreads / 32);
  peak.flops = flops / median_seconds(stream, products);
  return peak;
}

double measure_cuda(KernelContext& context, const CudaWorkload& workload) {
  cudaStream_t stream = stream_of(context);
  const int sets =
      std::clamp(static_cast<int>(std::ceil(kPastL2 / workload.bytes)) + 1, 1, kMostSets);
  const auto call = workload.prepare(context, workload.bytes > kPastL2 ? 1 : sets);
  call(context, 0);  // takes scratch memory, loads the code
  context.device()->synchronize();
  const double once = seconds_of(stream, [&] { call(context, 1); });
  const int calls = std::clamp(static_cast<int>(kReplaySeconds / once), 1, kMostCalls);
  const Graph graph(stream, [&] {
    for (int i = 0; i < calls; ++i) call(context, i);
  });
  graph.launch();
  const double seconds = median_seconds(stream, [&] { graph.launch(); }) / calls;
  context.device()->synchronize();
  return seconds * 1e6;
}

}  // namespace tamis
