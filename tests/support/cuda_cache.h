// A PagedCache of the tests on the device, and TokenMaps into it. Test code only.
#pragma once

#include <memory>

#include "support/cuda_device.h"
#include "support/paged_cache.h"

namespace tamis {

class DeviceCache {
 public:
  DeviceCache(KernelContext& context, const PagedCache& cache)
      : layer_(cache.layer()), bytes_(context, cache.bytes()) {
    layer_.base = bytes_.data();
    std::vector<KvSequence> sequences;
    for (const std::vector<int32_t>& p : cache.pages()) {
      pages_.emplace_back(context, p);
      sequences.push_back({pages_.back().data()});
    }
    sequences_ = std::make_unique<Device<KvSequence>>(context, sequences);
  }

  const KvLayer& layer() const { return layer_; }
  const KvSequence* sequences() const { return sequences_->data(); }
  std::vector<std::byte> read() const { return bytes_.read(); }

 private:
  KvLayer layer_;
  Device<std::byte> bytes_;
  std::vector<Device<int32_t>> pages_;
  std::unique_ptr<Device<KvSequence>> sequences_;
};

// A host token map's lists on the device, into `cache`.
class DeviceTokens {
 public:
  DeviceTokens(KernelContext& context, const TokenMap& host, const DeviceCache& cache)
      : sequence_(context, {host.sequence, host.sequence + host.num_tokens}),
        position_(context, {host.position, host.position + host.num_tokens}),
        map_{host.num_tokens, sequence_.data(), position_.data(), cache.sequences(),
             host.max_context} {}

  const TokenMap& map() const { return map_; }

 private:
  Device<int32_t> sequence_, position_;
  TokenMap map_;
};

}  // namespace tamis
