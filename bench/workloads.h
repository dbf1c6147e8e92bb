// Named shapes of every operation: the one table that `tamis bench op` and kernels_bench measure.
//
// "v32" is DeepSeek-V3.2, "mini" the bundled model, "small" the 0.73B model of
// bench/make_cpu_model.py. A new shape is a row here; src/kernels/workloads makes operands for it.
#pragma once

#include <cstdint>

namespace tamis::bench {

// y [m, rows] = x [m, cols] W^T, for each number of rows of x and each weight format.
struct LinearShape {
  const char* name;
  int64_t cols, rows;
};
constexpr LinearShape kLinearShapes[] = {
    {"v32_q_a", 7168, 1536},         {"v32_q_b", 1536, 24576}, {"v32_expert_up", 7168, 2048},
    {"v32_expert_down", 2048, 7168}, {"mini_q_b", 128, 768},   {"mini_expert_up", 256, 64},
    {"mini_head", 256, 8192},        {"small_q_b", 512, 3072}, {"small_expert_up", 1024, 512},
    {"small_head", 1024, 32768},
};
constexpr int64_t kLinearRows[] = {1, 16, 512};

// The matrices of W_UK (transposed) and W_UV: one [rows, cols] a head.
struct PerHeadShape {
  const char* name;
  int64_t tokens, heads, rows, cols;
};
constexpr PerHeadShape kPerHeadShapes[] = {
    {"v32_decode", 1, 128, 128, 512},
    {"v32_prefill64", 64, 128, 128, 512},
    {"mini_decode", 1, 4, 128, 512},
    {"mini_prefill512", 512, 4, 128, 512},
};

// The last `tokens` of `context` tokens; latent 512 + 64. selected 0: every visible position.
struct SparseShape {
  const char* name;
  int64_t tokens, heads, context, selected;
};
constexpr SparseShape kSparseShapes[] = {
    {"v32_decode_2k_of_32k", 1, 128, 32768, 2048},
    {"v32_prefill8_2k_of_32k", 8, 128, 32768, 2048},
    {"mini_decode_256_of_4k", 1, 4, 4096, 256},
    {"mini_prefill512_256_of_4k", 512, 4, 4096, 256},
    {"small_decode_2k_of_32k", 1, 16, 32768, 2048},
    {"small_decode_all_32k", 1, 16, 32768, 0},
    {"small_batch8_2k_of_32k", 8, 16, 32768, 2048},
    {"small_prompt512", 512, 16, 512, 0},
    {"small_prompt2048", 256, 16, 2048, 0},
};

// A whole prompt in the expanded form: heads of 128 + 64, values of 128.
struct DenseShape {
  const char* name;
  int64_t tokens, heads;
};
constexpr DenseShape kDenseShapes[] = {
    {"v32_prompt256", 256, 128},
    {"mini_prompt512", 512, 4},
    {"mini_prompt2048", 2048, 4},
    {"small_prompt512", 512, 16},
};

// Indexer keys of 128.
struct IndexShape {
  const char* name;
  int64_t tokens, heads, context, selected;
};
constexpr IndexShape kIndexShapes[] = {
    {"v32_decode_32k", 1, 64, 32768, 2048},  {"v32_prefill16_32k", 16, 64, 32768, 2048},
    {"mini_decode_4k", 1, 4, 4096, 256},     {"mini_prefill512_4k", 512, 4, 4096, 256},
    {"small_decode_32k", 1, 8, 32768, 2048},
};

// One row of scores.
struct TopkShape {
  const char* name;
  int64_t length, selected;
};
constexpr TopkShape kTopkShapes[] = {
    {"mini_4k", 4096, 256},
    {"v32_32k", 32768, 2048},
    {"v32_128k", 131072, 2048},
};

// Operations on rows alone.
struct RowShape {
  const char* op;
  const char* name;
  int64_t rows, width;
};
constexpr RowShape kRowShapes[] = {
    {"rms_norm", "v32_decode", 1, 7168},
    {"rms_norm", "v32_prefill512", 512, 7168},
    {"rms_norm", "mini_prefill512", 512, 256},
    {"layer_norm", "v32_prefill512", 512, 128},
    {"rope", "v32_prefill64", 64 * 128, 64},
    {"rope", "mini_prefill512", 512 * 4, 64},
    {"hadamard", "v32_prefill64", 64 * 64, 128},
    {"hadamard", "mini_prefill512", 512 * 4, 128},
    {"swiglu", "v32_decode", 8, 2048},
    {"swiglu", "v32_prefill512", 512, 18432},
    {"swiglu", "mini_prefill512", 2048, 64},
    {"quantize_fp8", "v32_prefill64", 64, 7168},
    {"quantize_fp8", "mini_prefill512", 512, 256},
    {"embedding", "v32_prefill512", 512, 7168},
    {"embedding", "mini_prefill512", 512, 256},
    {"kv_append", "v32_prefill512", 512, 576},
    {"cross_entropy", "mini_512", 512, 8192},
    {"cross_entropy", "v32_16", 16, 129280},
};

// The router and the sorting of tokens by expert.
struct MoeShape {
  const char* name;
  int64_t tokens, experts, groups, topk_group, chosen, width;
};
constexpr MoeShape kMoeShapes[] = {
    {"v32_decode", 1, 256, 8, 4, 8, 7168},
    {"v32_prefill64", 64, 256, 8, 4, 8, 7168},
    {"mini_prefill512", 512, 16, 4, 2, 4, 256},
};

// Shapes for a GPU: too large for a CPU's minutes. Sequences of `context` tokens, the last `tokens`
// of each in the call. Caches: bf16 (latents of 1152 bytes) or fp8 (656, keys of 132).
struct GpuSparseShape {
  const char* name;
  int64_t sequences, tokens, heads, context, selected;
  bool fp8;
};
constexpr GpuSparseShape kGpuSparseShapes[] = {
    {"v32_prefill4096_8k.bf16", 1, 4096, 128, 8192, 2048, false},
    {"v32_prefill4096_32k.bf16", 1, 4096, 128, 32768, 2048, false},
    {"v32_prefill4096_128k.bf16", 1, 4096, 128, 131072, 2048, false},
    {"v32_prefill4096_32k.fp8", 1, 4096, 128, 32768, 2048, true},
    {"v32_prefill4096_32k_h64.bf16", 1, 4096, 64, 32768, 2048, false},
    {"v32_prefill4096_32k_h16.bf16", 1, 4096, 16, 32768, 2048, false},
    {"v32_decode1_32k.fp8", 1, 1, 128, 32768, 2048, true},
    {"v32_decode2_32k.fp8", 2, 1, 128, 32768, 2048, true},
    {"v32_decode4_32k.fp8", 4, 1, 128, 32768, 2048, true},
    {"v32_decode16_32k.fp8", 16, 1, 128, 32768, 2048, true},
    {"v32_decode64_32k.fp8", 64, 1, 128, 32768, 2048, true},
    {"v32_decode128_32k.fp8", 128, 1, 128, 32768, 2048, true},
    {"v32_decode1_32k.bf16", 1, 1, 128, 32768, 2048, false},
    {"v32_decode128_32k.bf16", 128, 1, 128, 32768, 2048, false},
    {"v32_decode128_32k_h16.fp8", 128, 1, 16, 32768, 2048, true},
    {"mini_decode1_4k.bf16", 1, 1, 4, 4096, 256, false},
    {"mini_decode256_4k.bf16", 256, 1, 4, 4096, 256, false},
};

// Keys in FP8. selected 0: the scores alone (indexer_logits), else with top-k (indexer_select).
struct GpuIndexShape {
  const char* name;
  int64_t sequences, tokens, heads, context, selected;
};
constexpr GpuIndexShape kGpuIndexShapes[] = {
    {"v32_prefill4096_4k", 1, 4096, 64, 4096, 0},
    {"v32_prefill4096_32k", 1, 4096, 64, 32768, 0},
    {"v32_prefill2048_128k", 1, 2048, 64, 131072, 0},
    {"v32_decode1_8k", 1, 1, 64, 8192, 0},
    {"v32_decode1_32k", 1, 1, 64, 32768, 0},
    {"v32_decode1_128k", 1, 1, 64, 131072, 0},
    {"v32_decode16_32k", 16, 1, 64, 32768, 0},
    {"v32_decode64_32k", 64, 1, 64, 32768, 0},
    {"v32_decode128_32k", 128, 1, 64, 32768, 0},
    {"v32_prefill4096_32k", 1, 4096, 64, 32768, 2048},
    {"v32_decode1_32k", 1, 1, 64, 32768, 2048},
    {"v32_decode128_32k", 128, 1, 64, 32768, 2048},
};

struct GpuTopkShape {
  const char* name;
  int64_t rows, length, selected;
  bool narrow;  // all scores within 1 % of each other
};
constexpr GpuTopkShape kGpuTopkShapes[] = {
    {"v32_1x8k", 1, 8192, 2048, false},
    {"v32_1x32k", 1, 32768, 2048, false},
    {"v32_1x128k", 1, 131072, 2048, false},
    {"v32_16x8k", 16, 8192, 2048, false},
    {"v32_16x32k", 16, 32768, 2048, false},
    {"v32_16x128k", 16, 131072, 2048, false},
    {"v32_64x8k", 64, 8192, 2048, false},
    {"v32_64x32k", 64, 32768, 2048, false},
    {"v32_64x128k", 64, 131072, 2048, false},
    {"v32_128x8k", 128, 8192, 2048, false},
    {"v32_128x32k", 128, 32768, 2048, false},
    {"v32_128x128k", 128, 131072, 2048, false},
    {"v32_2048x8k", 2048, 8192, 2048, false},
    {"v32_2048x32k", 2048, 32768, 2048, false},
    {"v32_2048x128k", 2048, 131072, 2048, false},
    {"v32_16x128k_narrow", 16, 131072, 2048, true},
    {"v32_64x128k_narrow", 64, 131072, 2048, true},
    {"mini_256x4k", 256, 4096, 256, false},
};

// y [m, rows] = x [m, cols] W^T in native precision, for each of kGpuLinearRows and both formats.
constexpr LinearShape kGpuLinearShapes[] = {
    {"v32_qkv_a", 7168, 2112},          {"v32_q_b", 1536, 24576},        {"v32_o", 16384, 7168},
    {"v32_expert_up_gate", 7168, 4096}, {"v32_expert_down", 2048, 7168},
};
constexpr int64_t kGpuLinearRows[] = {1, 16, 32, 64, 128, 4096};

// Rows of x spread evenly over experts in FP8; as many experts are active as there are rows.
struct GpuGroupedShape {
  const char* name;
  int64_t groups, rows_of_x, cols, rows;
};
constexpr GpuGroupedShape kGpuGroupedShapes[] = {
    {"v32_up_256x8", 256, 8, 7168, 4096},         {"v32_up_256x128", 256, 128, 7168, 4096},
    {"v32_up_256x512", 256, 512, 7168, 4096},     {"v32_up_256x2048", 256, 2048, 7168, 4096},
    {"v32_up_256x32768", 256, 32768, 7168, 4096}, {"v32_up_32x1024", 32, 1024, 7168, 4096},
    {"v32_up_32x32768", 32, 32768, 7168, 4096},   {"v32_down_256x32768", 256, 32768, 2048, 7168},
    {"v32_down_32x32768", 32, 32768, 2048, 7168}, {"v32_down_256x512", 256, 512, 2048, 7168},
};

}  // namespace tamis::bench
