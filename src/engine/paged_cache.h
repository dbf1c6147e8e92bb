// The memory of the cache: a pool of pages of 64 tokens. A page holds a token's latent, RoPE key
// and indexer key for every layer (kernels/kv_layout.h), so that all of it is allocated, shared,
// copied and freed together.
//
// Pages are reference-counted: sequences with a common prefix share its full pages. Only a page
// that one sequence holds alone is written to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/kv_view.h"
#include "tensor/cuda/device.h"

namespace tamis {

struct CacheOptions {
  int64_t pages = 0;
  KvFormat latent_format = KvFormat::kF32;
  KvFormat index_format = KvFormat::kF32;
  bool with_mtp = false;
};

// Pages that n tokens fill.
inline int64_t pages_for(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

// Bytes of one page, all layers together.
int64_t cache_page_bytes(const ModelConfig& config, const CacheOptions& options);

// A sequence's place in the cache.
struct CachedSequence {
  std::vector<int32_t> pages;
  int64_t length = 0;  // tokens whose entries are written
};

class PagedCache {
 public:
  // Address space is reserved at once; the machine gives memory when a page is first written.
  // DeviceError if the space cannot be had; UsageError for formats the model cannot have (an FP8
  // indexer key holds at most 128 values).
  // With a device (KernelContext::device()) the pages are there, taken at once.
  PagedCache(const ModelConfig& config, const CacheOptions& options, DeviceContext* device);
  ~PagedCache();
  PagedCache(const PagedCache&) = delete;
  PagedCache& operator=(const PagedCache&) = delete;

  KvView view() const { return layers_; }
  // The pages on the host, for tools that read or write entries there: the cache itself, or a copy
  // of a device's that write_back() returns.
  struct HostPages {
    std::vector<std::byte> bytes;
    std::vector<KvLayer> layers;
  };
  HostPages host_pages() const;
  void write_back(const HostPages& pages);
  // All layers of one page, page_bytes() long.
  void read_page(int32_t page, std::span<std::byte> bytes) const;
  void write_page(int32_t page, std::span<const std::byte> bytes);
  int64_t page_bytes() const { return page_bytes_; }
  // Every page is free, used by a sequence, or cached: kept for later sequences and used by none.
  int64_t total_pages() const { return static_cast<int64_t>(references_.size()); }
  int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }
  int64_t cached_pages() const { return cached_; }
  int64_t used_pages() const { return total_pages() - free_pages() - cached_pages(); }

  // Makes room for `tokens` more entries after sequence.length. False, and nothing changed, if the
  // pool has too few free pages.
  bool reserve(CachedSequence& sequence, int64_t tokens);
  // A sequence of the first `length` tokens of another: full pages are shared, a started one is
  // copied. False if no page is free for the copy.
  bool fork(const CachedSequence& from, int64_t length, CachedSequence& to);
  void release(CachedSequence& sequence);

  // Keeps a page that a sequence holds after all sequences have left it; it then counts as cached.
  // Once a page.
  void keep(int32_t page);
  void forget(int32_t page);
  int32_t references(int32_t page) const { return references_[static_cast<size_t>(page)]; }
  bool kept(int32_t page) const { return kept_[static_cast<size_t>(page)] != 0; }

  // What is wrong with the counts, empty if nothing: every page must be referenced by exactly the
  // sequences given, and once more if it is in `kept`. For tests; looks at every page.
  std::string audit(std::span<const CachedSequence* const> sequences,
                    std::span<const int32_t> kept) const;

 private:
  std::byte* page_data(int32_t page) const { return pool_ + page * page_bytes_; }

  void copy_page(int32_t to, int32_t from);

  DeviceContext* device_ = nullptr;
  DeviceBuffer on_device_;
  std::byte* pool_ = nullptr;
  int64_t page_bytes_ = 0;
  std::vector<KvLayer> layers_;
  void retain(int32_t page);
  void release_page(int32_t page);

  std::vector<int32_t> references_;
  std::vector<uint8_t> kept_;
  std::vector<int32_t> free_;
  int64_t cached_ = 0;
};

}  // namespace tamis
