// The x_cuda functions of a build without CUDA. They are never reached: a context of back end kCuda
// cannot be made in such a build, and no other may run them.
#include "base/error.h"
#include "kernels/absorb_select/absorb_select_impl.h"
#include "kernels/adamw/adamw_impl.h"
#include "kernels/array_ops/array_ops_impl.h"
#include "kernels/cross_entropy/cross_entropy_backward_impl.h"
#include "kernels/cross_entropy/cross_entropy_impl.h"
#include "kernels/cuda/device_code.h"
#include "kernels/elementwise/elementwise_impl.h"
#include "kernels/embedding/embedding_backward_impl.h"
#include "kernels/embedding/embedding_impl.h"
#include "kernels/fp8_products/fp8_products_impl.h"
#include "kernels/fp8_round/fp8_round_impl.h"
#include "kernels/grouped_linear/grouped_linear_impl.h"
#include "kernels/hadamard/hadamard_impl.h"
#include "kernels/indexer_kl/indexer_kl_impl.h"
#include "kernels/indexer_logits/indexer_logits_impl.h"
#include "kernels/indexer_select/indexer_select_impl.h"
#include "kernels/kv_append/kv_append_impl.h"
#include "kernels/kv_gather/kv_gather_impl.h"
#include "kernels/layer_norm/layer_norm_backward_impl.h"
#include "kernels/layer_norm/layer_norm_impl.h"
#include "kernels/linear/linear_impl.h"
#include "kernels/matmul/matmul_impl.h"
#include "kernels/mla_dense/mla_bf16_impl.h"
#include "kernels/mla_dense/mla_dense_backward_impl.h"
#include "kernels/mla_dense/mla_dense_impl.h"
#include "kernels/mla_sparse/mla_sparse_backward_impl.h"
#include "kernels/mla_sparse/mla_sparse_impl.h"
#include "kernels/moe_gate/moe_gate_backward_impl.h"
#include "kernels/moe_gate/moe_gate_impl.h"
#include "kernels/moe_permute/moe_permute_backward_impl.h"
#include "kernels/moe_permute/moe_permute_impl.h"
#include "kernels/moe_route/moe_route_impl.h"
#include "kernels/per_head_linear/per_head_linear_impl.h"
#include "kernels/rms_norm/rms_norm_backward_impl.h"
#include "kernels/rms_norm/rms_norm_impl.h"
#include "kernels/rope/rope_backward_impl.h"
#include "kernels/rope/rope_impl.h"
#include "kernels/sample/sample_impl.h"
#include "kernels/step_io/step_io_impl.h"
#include "kernels/swiglu/swiglu_backward_impl.h"
#include "kernels/swiglu/swiglu_impl.h"
#include "kernels/token_ops/token_ops_impl.h"
#include "kernels/token_products/token_products_impl.h"
#include "kernels/topk/topk_impl.h"
#include "kernels/workloads/cuda_workloads.h"

namespace tamis {
namespace {

[[noreturn]] void refuse() {
  throw DeviceError("this build has no CUDA: configure with 'cmake --preset cuda'");
}

}  // namespace

void absorb_select_cuda(KernelContext&, const AbsorbSelectArgs&) { refuse(); }
bool absorb_select_cuda_supports(const AbsorbSelectArgs&) { return false; }
void adamw_cuda(KernelContext&, const AdamwArgs&) { refuse(); }
void add_experts_cuda(KernelContext&, const AddExpertsArgs<float>&) { refuse(); }
void add_values_cuda(KernelContext&, const float*, int64_t, float*) { refuse(); }
void check_device_code(const DeviceContext&) { refuse(); }
void check_finite_cuda(KernelContext&, const CheckFiniteArgs&) { refuse(); }
void check_flags_cuda(KernelContext&, const CheckFlagsArgs&) { refuse(); }
void copy_columns_cuda(KernelContext&, const CopyColumnsArgs<float>&) { refuse(); }
void cross_entropy_cuda(KernelContext&, const CrossEntropyArgs&) { refuse(); }
std::vector<CudaWorkload> cuda_workloads() { refuse(); }
void embedding_cuda(KernelContext&, const EmbeddingArgs&) { refuse(); }
void fill_cuda(KernelContext&, const FillArgs&) { refuse(); }
void fp8_products_forward_cuda(KernelContext&, const Fp8ForwardArgs&) { refuse(); }
void fp8_products_backward_cuda(KernelContext&, const Fp8BackwardArgs&) { refuse(); }
bool has_fp8_products_cuda() { return false; }
void fp8_round_cuda(KernelContext&, const Fp8RoundArgs<float>&) { refuse(); }
void gather_rows_cuda(KernelContext&, const GatherRowsArgs&) { refuse(); }
void grouped_matmuls_cuda(KernelContext&, std::span<const GroupedMatmulArgs<float>>, bool) {
  refuse();
}
void grouped_linear_cuda(KernelContext&, const GroupedLinearArgs&) { refuse(); }
void hadamard_cuda(KernelContext&, const HadamardArgs&) { refuse(); }
bool hadamard_cuda_supports(const HadamardArgs&) { refuse(); }
void index_query_cuda(KernelContext&, const IndexQueryArgs&) { refuse(); }
void indexer_kl_dense_cuda(KernelContext&, const IndexerKlDenseArgs<float>&) { refuse(); }
bool indexer_kl_flash_supports(const IndexerKlDenseArgs<float>&) { return true; }
void indexer_kl_dense_flash(KernelContext&, const IndexerKlDenseArgs<float>&) { refuse(); }
bool indexer_kl_few_supports(const IndexerKlSparseArgs<float>&) { return true; }
bool indexer_kl_many_supports(const IndexerKlSparseArgs<float>&) { return true; }
void indexer_kl_sparse_many(KernelContext&, const IndexerKlSparseArgs<float>&) { refuse(); }
void indexer_kl_sparse_few(KernelContext&, const IndexerKlSparseArgs<float>&) { refuse(); }
void indexer_kl_sparse_cuda(KernelContext&, const IndexerKlSparseArgs<float>&) { refuse(); }
void indexer_logits_cuda(KernelContext&, const IndexerLogitsArgs&) { refuse(); }
void indexer_select_cuda(KernelContext&, const IndexerSelectArgs&) { refuse(); }
void indexer_select_train_cuda(KernelContext&, const IndexerSelectTrainArgs&) { refuse(); }
void kv_append_cuda(KernelContext&, const KvAppendArgs&) { refuse(); }
void kv_gather_cuda(KernelContext&, const KvGatherArgs&) { refuse(); }
void largest_columns_cuda(KernelContext&, const LargestColumnsArgs<float>&) { refuse(); }
void layer_norm_cuda(KernelContext&, const LayerNormArgs&) { refuse(); }
void linear_fp8_cuda(KernelContext&, const LinearFp8Args&) { refuse(); }
void linears_cuda(KernelContext&, const std::span<const LinearArgs>&) { refuse(); }
void matmuls_bf16_cuda(KernelContext&, const std::span<const MatmulArgs<float>>&) { refuse(); }
void matmuls_cuda(KernelContext&, const std::span<const MatmulArgs<float>>&) { refuse(); }
bool select_mask_supports(const SelectMaskArgs&) { return true; }
void select_mask_cuda(KernelContext&, const SelectMaskArgs&) { refuse(); }
void mask_selection_cuda(KernelContext&, const MaskSelectionArgs&) { refuse(); }
double measure_cuda(KernelContext&, const CudaWorkload&) { refuse(); }
CudaPeak measure_cuda_peak(KernelContext&) { refuse(); }
bool mla_bf16_flash_supports(const MlaBf16Sequence&) { return true; }
void mla_backward_bf16_flash(KernelContext&, const MlaBackwardBf16Args&) { refuse(); }
void mla_train_bf16_flash(KernelContext&, const MlaTrainBf16Args&) { refuse(); }
void mla_dense_backward_cuda(KernelContext&, const MlaDenseBackwardArgs<float>&) { refuse(); }
void mla_dense_backward_flash(KernelContext&, const MlaDenseBackwardArgs<float>&) { refuse(); }
bool mla_flash_supports(const MlaSequence<float>&) { return true; }
void mla_dense_train_flash(KernelContext&, const MlaDenseTrainArgs&) { refuse(); }
void mla_dense_train_cuda(KernelContext&, const MlaDenseTrainArgs&) { refuse(); }
void mla_dense_mma_cuda(KernelContext&, const MlaDenseArgs&) { refuse(); }
bool mla_dense_mma_supports(const MlaDenseArgs&) { refuse(); }
void mla_dense_cuda(KernelContext&, const MlaDenseArgs&) { refuse(); }
bool mla_dense_cuda_supports(const MlaDenseArgs&) { return true; }
void mla_sparse_backward_cuda(KernelContext&, const MlaSparseBackwardArgs<float>&) { refuse(); }
void mla_sparse_target_cuda(KernelContext&, const MlaSparseTargetArgs<float>&) { refuse(); }
void mla_sparse_train_cuda(KernelContext&, const MlaSparseTrainArgs&) { refuse(); }
void mla_sparse_backward_few(KernelContext&, const MlaSparseBackwardArgs<float>&) { refuse(); }
void mla_sparse_train_many(KernelContext&, const MlaSparseTrainArgs&) { refuse(); }
void mla_sparse_target_many(KernelContext&, const MlaSparseTargetArgs<float>&) { refuse(); }
void mla_sparse_backward_many(KernelContext&, const MlaSparseBackwardArgs<float>&) { refuse(); }
void mla_sparse_target_few(KernelContext&, const MlaSparseTargetArgs<float>&) { refuse(); }
void mla_sparse_train_few(KernelContext&, const MlaSparseTrainArgs&) { refuse(); }
bool mla_sparse_few_supports(const MlaSparseBackwardArgs<float>&) { return true; }
bool mla_sparse_many_supports(const MlaSparseBackwardArgs<float>&) { return true; }
void mla_sparse_cuda(KernelContext&, const MlaSparseArgs&) { refuse(); }
bool mla_sparse_cuda_supports(const MlaSparseArgs&) { return true; }
void mla_sparse_mma_cuda(KernelContext&, const MlaSparseArgs&) { refuse(); }
bool mla_sparse_mma_supports(const MlaSparseArgs&) { return true; }
void moe_combine_cuda(KernelContext&, const MoeCombineArgs&) { refuse(); }
void moe_gate_cuda(KernelContext&, const MoeGateArgs&) { refuse(); }
bool moe_gate_cuda_supports(const MoeGateArgs&) { refuse(); }
void moe_permute_cuda(KernelContext&, const MoePermuteArgs&) { refuse(); }
bool moe_permute_cuda_supports(const MoePermuteArgs&) { refuse(); }
void moe_route_cuda(KernelContext&, const MoeRouteArgs&) { refuse(); }
bool moe_route_cuda_supports(const MoeRouteArgs&) { return true; }
void per_head_linear_cuda(KernelContext&, const PerHeadLinearArgs&) { refuse(); }
void pick_rows_cuda(KernelContext&, const PickRowsArgs<float>&) { refuse(); }
void projections_cuda(KernelContext&, std::span<const LinearArgs>, bool) { refuse(); }
void return_rows_cuda(KernelContext&, const ReturnRowsArgs<float>&) { refuse(); }
void rms_norms_cuda(KernelContext&, std::span<const RmsNormArgs>) { refuse(); }
void rms_norm_cuda(KernelContext&, const RmsNormArgs&) { refuse(); }
void ropes_cuda(KernelContext&, std::span<const RopeArgs>) { refuse(); }
void token_ops_cuda(KernelContext&, int64_t, std::span<const TokenStep>) { refuse(); }
bool token_products_cuda(KernelContext&, const TokenProductsArgs&) { refuse(); }
bool token_products_cuda_supports(int64_t, const TokenProductsArgs&) { return false; }
void rope_cuda(KernelContext&, const RopeArgs&) { refuse(); }
void round_values_cuda(KernelContext&, const float*, int64_t, uint16_t*) { refuse(); }
void round_rows_cuda(KernelContext&, const RoundRowsArgs&) { refuse(); }
void sample_tokens_cuda(KernelContext&, const SampleTokensArgs&) { refuse(); }
void scale_values_cuda(KernelContext&, float*, int64_t, float) { refuse(); }
void select_window_cuda(KernelContext&, const SelectWindowArgs&) { refuse(); }
void step_in_cuda(KernelContext&, const StepInArgs&) { refuse(); }
bool step_idle_cuda(KernelContext&) { refuse(); }
void step_out_cuda(KernelContext&, const StepOutArgs&) { refuse(); }
void swiglus_cuda(KernelContext&, std::span<const SwigluArgs>) { refuse(); }
void swiglu_cuda(KernelContext&, const SwigluArgs&) { refuse(); }
void topk_cuda(KernelContext&, const TopkArgs&) { refuse(); }

// Training.
void cross_entropy_backward_cuda(KernelContext&, const CrossEntropyBackwardArgs<float>&) {
  refuse();
}
void embedding_backward_cuda(KernelContext&, const EmbeddingBackwardArgs<float>&) { refuse(); }
void layer_norm_backward_cuda(KernelContext&, const LayerNormBackwardArgs<float>&) { refuse(); }
void moe_combine_backward_cuda(KernelContext&, const MoeCombineBackwardArgs<float>&) { refuse(); }
void moe_gate_backward_cuda(KernelContext&, const MoeGateBackwardArgs<float>&) { refuse(); }
void moe_gate_backwards_cuda(KernelContext&, std::span<const MoeGateBackwardArgs<float>>) {
  refuse();
}
void moe_permute_backward_cuda(KernelContext&, const MoePermuteBackwardArgs<float>&) { refuse(); }
void rms_norm_backward_cuda(KernelContext&, const RmsNormBackwardArgs<float>&) { refuse(); }
void rope_turn_cuda(KernelContext&, const RopeTurnArgs<float>&) { refuse(); }
std::vector<double> squares_by_block_cuda(KernelContext&, const float*, int64_t) { refuse(); }
void swiglu_backward_cuda(KernelContext&, const SwigluBackwardArgs<float>&) { refuse(); }

}  // namespace tamis
