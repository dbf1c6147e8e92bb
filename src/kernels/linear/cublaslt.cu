// cuBLASLt is loaded when it is first wanted (it has half a gigabyte, and no one else needs it).
// Its matrices are column after column: W [rows, cols] of ours is cols x rows there, to be
// transposed; x [m, cols] is cols x m; y [m, rows] is rows x m.
#include <cublasLt.h>
#include <dlfcn.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>

#include "base/error.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/linear/cublaslt.h"
#include "tensor/cuda/device.h"

namespace tamis {
namespace {

constexpr int kWorkspaceSlot = 1;  // of device_scratch
constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;
#if CUBLAS_VERSION >= 120900
constexpr bool kBlockScales = true;
#else
constexpr bool kBlockScales = false;  // this toolkit's cuBLASLt has none
#endif

void check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError(std::string("[linear] ") + call + ": cuBLASLt status " +
                    std::to_string(static_cast<int>(status)) +
                    "; run without TAMIS_OP=linear_tiles:cuda_cublaslt");
}

class Library {
 public:
  Library() {
    const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      throw DeviceError("[linear] " + name +
                        " cannot be loaded: install cuBLAS or set LD_LIBRARY_PATH, or run without "
                        "TAMIS_OP=linear_tiles:cuda_cublaslt");
    }
    const auto find = [&](auto& function, const char* symbol) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, symbol));
      if (function == nullptr) throw DeviceError("[linear] " + name + " lacks " + symbol);
    };
    find(create, "cublasLtCreate");
    find(matmul, "cublasLtMatmul");
    find(choose, "cublasLtMatmulAlgoGetHeuristic");
    find(create_desc, "cublasLtMatmulDescCreate");
    find(destroy_desc, "cublasLtMatmulDescDestroy");
    find(set_desc, "cublasLtMatmulDescSetAttribute");
    find(create_layout, "cublasLtMatrixLayoutCreate");
    find(destroy_layout, "cublasLtMatrixLayoutDestroy");
    find(create_preference, "cublasLtMatmulPreferenceCreate");
    find(destroy_preference, "cublasLtMatmulPreferenceDestroy");
    find(set_preference, "cublasLtMatmulPreferenceSetAttribute");
  }

  decltype(&cublasLtCreate) create = nullptr;
  decltype(&cublasLtMatmul) matmul = nullptr;
  decltype(&cublasLtMatmulAlgoGetHeuristic) choose = nullptr;
  decltype(&cublasLtMatmulDescCreate) create_desc = nullptr;
  decltype(&cublasLtMatmulDescDestroy) destroy_desc = nullptr;
  decltype(&cublasLtMatmulDescSetAttribute) set_desc = nullptr;
  decltype(&cublasLtMatrixLayoutCreate) create_layout = nullptr;
  decltype(&cublasLtMatrixLayoutDestroy) destroy_layout = nullptr;
  decltype(&cublasLtMatmulPreferenceCreate) create_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceDestroy) destroy_preference = nullptr;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference = nullptr;
};

const Library& library() {
  static const Library loaded;
  return loaded;
}

template <typename T>
using Owned = std::unique_ptr<std::remove_pointer_t<T>, cublasStatus_t (*)(T)>;

Owned<cublasLtMatrixLayout_t> layout(cudaDataType_t type, int64_t rows, int64_t cols,
                                     int64_t apart) {
  cublasLtMatrixLayout_t made = nullptr;
  check(library().create_layout(&made, type, static_cast<uint64_t>(rows),
                                static_cast<uint64_t>(cols), apart),
        "cublasLtMatrixLayoutCreate");
  return {made, library().destroy_layout};
}

// y = W^T x with the scales of both, as cuBLASLt names the three.
Owned<cublasLtMatmulDesc_t> operation(const LinearArgs& a, bool fp8, const PreparedX& x) {
  cublasLtMatmulDesc_t made = nullptr;
  check(library().create_desc(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  Owned<cublasLtMatmulDesc_t> owned{made, library().destroy_desc};
  const auto set = [&](cublasLtMatmulDescAttributes_t what, const auto& value) {
    check(library().set_desc(made, what, &value, sizeof(value)), "cublasLtMatmulDescSetAttribute");
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  if (!fp8) return owned;
#if CUBLAS_VERSION >= 120900
  const void* w_scales = a.w.scales + a.w.row_offset / kFp8Block * a.w.scale_stride * 4;
  const void* x_scales = x.scales;
  set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, w_scales);
  set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, x_scales);
  set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F);
  set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F);
#endif
  return owned;
}

// What the choice of an algorithm depends on: fp8, rows, m, cols, row_bytes, y_stride, x_stride.
using Shape = std::array<int64_t, 7>;

// The process's handles and choices, by device.
class Cublaslt {
 public:
  void run(KernelContext& context, const LinearArgs& a, bool fp8, const PreparedX& x,
           int64_t x_stride) {
    const std::lock_guard lock(mutex_);
    Device& device = devices_[context.device()->info().ordinal];
    if (device.handle == nullptr) check(library().create(&device.handle), "cublasLtCreate");
    const cudaDataType_t type = fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    const auto what = operation(a, fp8, x);
    const auto w = layout(type, a.w.cols, a.w.rows, a.w.row_bytes / (fp8 ? 1 : 2));
    const auto in = layout(type, a.w.cols, a.m, x_stride);
    const auto out = layout(CUDA_R_32F, a.w.rows, a.m, a.y_stride);
    const Shape shape{fp8, a.w.rows, a.m, a.w.cols, a.w.row_bytes, a.y_stride, x_stride};
    auto chosen = device.algorithms.find(shape);
    if (chosen == device.algorithms.end()) {
      const auto algorithm = choose(device.handle, what.get(), w.get(), in.get(), out.get());
      chosen = device.algorithms.emplace(shape, algorithm).first;
    }
    const float one = 1, zero = 0;
    check(library().matmul(device.handle, what.get(), &one, a.w.data, w.get(), x.x, in.get(), &zero,
                           a.y, out.get(), a.y, out.get(), &chosen->second,
                           device_scratch(context, kWorkspaceSlot, kWorkspaceBytes),
                           kWorkspaceBytes, stream_of(context)),
          "cublasLtMatmul");
  }

 private:
  struct Device {
    cublasLtHandle_t handle = nullptr;
    std::map<Shape, cublasLtMatmulAlgo_t> algorithms;
  };

  static cublasLtMatmulAlgo_t choose(cublasLtHandle_t handle, cublasLtMatmulDesc_t what,
                                     cublasLtMatrixLayout_t w, cublasLtMatrixLayout_t x,
                                     cublasLtMatrixLayout_t y) {
    cublasLtMatmulPreference_t made = nullptr;
    check(library().create_preference(&made), "cublasLtMatmulPreferenceCreate");
    const Owned<cublasLtMatmulPreference_t> wish{made, library().destroy_preference};
    const uint64_t bytes = kWorkspaceBytes;
    check(library().set_preference(made, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                   sizeof(bytes)),
          "cublasLtMatmulPreferenceSetAttribute");
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    check(library().choose(handle, what, w, x, y, y, made, 1, &found, &count),
          "cublasLtMatmulAlgoGetHeuristic");
    check(count > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED,
          "cublasLtMatmulAlgoGetHeuristic");
    return found.algo;
  }

  std::mutex mutex_;
  std::map<int, Device> devices_;
};

}  // namespace

int64_t cublaslt_rows(const LinearArgs& a, bool fp8, int sm) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (a.w.row_bytes % 16 != 0 || !aligned(a.w.data) || !aligned(a.y) || a.y_stride % 4 != 0) {
    return 0;
  }
  if (!fp8) return a.w.cols % 8 == 0 ? a.m : 0;
  const bool takes = kBlockScales && sm == 90 && a.w.cols % kFp8Block == 0 && a.w.rows % 16 == 0 &&
                     a.w.row_offset % kFp8Block == 0 && a.w.col_offset == 0 &&
                     a.w.scale_stride % 4 == 0;
  return takes ? a.m / 16 * 16 : 0;
}

void product_cublaslt(KernelContext& context, const LinearArgs& a, bool fp8, const PreparedX& x,
                      int64_t x_stride) {
  static Cublaslt cublaslt;
  cublaslt.run(context, a, fp8, x, x_stride);
}

}  // namespace tamis
