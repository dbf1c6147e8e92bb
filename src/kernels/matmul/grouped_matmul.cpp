#include "kernels/matmul/grouped_matmul.h"

#include <type_traits>
#include <vector>

#include "kernels/matmul/matmul_impl.h"

namespace tamis {

template <typename T>
void grouped_matmuls(KernelContext& context, std::span<const GroupedMatmulArgs<T>> args) {
  if constexpr (std::is_same_v<T, float>) {
    if (context.backend() == Backend::kCuda) {
      const bool bf16 = !context.allowed("matmul", "cuda");
      context.note("grouped_matmul", bf16 ? "cuda_bf16" : "cuda");
      return grouped_matmuls_cuda(context, args, bf16);
    }
  }
  std::vector<MatmulArgs<T>> list;
  for (const GroupedMatmulArgs<T>& a : args) {
    for (int64_t g = 0; g < a.groups; ++g) {
      list.push_back(product_of_group(a, g, a.offsets[g], a.offsets[g + 1]));
    }
  }
  matmuls<T>(context, list);
}

template void grouped_matmuls(KernelContext&, std::span<const GroupedMatmulArgs<float>>);
template void grouped_matmuls(KernelContext&, std::span<const GroupedMatmulArgs<double>>);

}  // namespace tamis
