// The operations of training alone: gradients, losses, the optimiser. Each lies beside its forward
// operation and is written for float, with faster versions, and for double, where finite
// differences check it. kernels/ops.h has the forward ones.
#pragma once

#include "kernels/adamw/adamw.h"  // the optimiser
#include "kernels/array_ops/array_ops.h"
#include "kernels/cross_entropy/cross_entropy_backward.h"  // loss and gradient in one pass
#include "kernels/embedding/embedding_backward.h"
#include "kernels/fp8_products/fp8_products.h"  // on FP8 tensor cores
#include "kernels/fp8_round/fp8_round.h"        // the factors of FP8 products
#include "kernels/indexer_kl/indexer_health.h"  // what the indexer's choice covers
#include "kernels/indexer_kl/indexer_kl.h"      // what the indexer learns from
#include "kernels/indexer_select/indexer_select_train.h"
#include "kernels/indexer_select/mask_selection.h"
#include "kernels/layer_norm/layer_norm_backward.h"
#include "kernels/matmul/grouped_matmul.h"
#include "kernels/matmul/matmul.h"  // every product of the backward pass
#include "kernels/mla_dense/mla_dense_backward.h"
#include "kernels/mla_dense/mla_dense_train.h"
#include "kernels/mla_sparse/mla_sparse_backward.h"  // gather; scatter in a fixed order
#include "kernels/mla_sparse/mla_sparse_train.h"
#include "kernels/moe_gate/moe_gate_backward.h"  // with the balance loss
#include "kernels/moe_permute/moe_permute_backward.h"
#include "kernels/rms_norm/rms_norm_backward.h"
#include "kernels/rope/rope_backward.h"
#include "kernels/swiglu/swiglu_backward.h"
