// What the model sees of the cache: a layer's pages and, for each sequence, its page table. The
// engine owns the pages.
#pragma once

#include <span>

#include "kernels/kv_layout.h"
#include "model/config.h"

namespace tamis {

// One entry a layer; the layers of multi-token prediction follow the main ones.
using KvView = std::span<const KvLayer>;

// The layout of a layer's entries for this model and these formats.
inline KvLayout kv_layout_of(const ModelConfig& config, const LayerConfig& layer, KvFormat latent,
                             KvFormat index) {
  const bool own = layer.indexer == IndexerKind::kOwn;
  return {config.kv_lora, config.rope, own ? config.index_dim : 0, latent, index};
}

}  // namespace tamis
