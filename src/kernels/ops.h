// Every operation of Tamis. Each folder holds x.h (what it computes), x_ref.cpp (the specification
// in plain loops), faster implementations and x_test.cpp; x.cpp lists the implementations in the
// order in which they are tried. kernels/workloads times them on the shapes of bench/workloads.h.
#pragma once

#include "kernels/absorb_select/absorb_select.h"      // W_UK and the selection side by side
#include "kernels/cross_entropy/cross_entropy.h"      // negative log-likelihood
#include "kernels/elementwise/elementwise.h"          // rounding, copies, checks between products
#include "kernels/embedding/embedding.h"              // ids -> residual stream
#include "kernels/grouped_linear/grouped_linear.h"    // the routed experts
#include "kernels/hadamard/hadamard.h"                // rotation before FP8 in the indexer
#include "kernels/indexer_logits/indexer_logits.h"    // equation (1): the index scores
#include "kernels/indexer_select/indexer_select.h"    // equation (1) and the selection, fused
#include "kernels/kv_append/kv_append.h"              // into the paged cache
#include "kernels/kv_gather/kv_gather.h"              // out of the paged cache, as float
#include "kernels/layer_norm/layer_norm.h"            // the indexer's key norm
#include "kernels/linear/linear.h"                    // all projections, grouped ones too
#include "kernels/linear/linear_int8.h"               // the same with activations in 8 bits
#include "kernels/mla_dense/mla_dense.h"              // attention, expanded form
#include "kernels/mla_sparse/mla_sparse.h"            // attention over a selection, absorbed form
#include "kernels/moe_gate/moe_gate.h"                // the router
#include "kernels/moe_permute/moe_permute.h"          // tokens by expert, and back
#include "kernels/moe_route/moe_route.h"              // the router and the sorting in one
#include "kernels/per_head_linear/per_head_linear.h"  // W_UK and W_UV
#include "kernels/quantize_fp8/quantize_fp8.h"        // act_quant, block_quant, cache rows
#include "kernels/rms_norm/rms_norm.h"                // with the residual addition
#include "kernels/rope/rope.h"                        // positions, YaRN
#include "kernels/step_io/step_io.h"                  // the ends of a step on a device
#include "kernels/swiglu/swiglu.h"                    // the MLP's activation
#include "kernels/token_ops/token_ops.h"              // several of these on a token, in one launch
#include "kernels/token_products/token_products.h"    // a norm, what reads it, and steps beside
#include "kernels/topk/topk.h"                        // selection from scores
