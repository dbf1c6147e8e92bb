#include "engine/paged_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace tamis {
namespace {

int64_t align64(int64_t n) { return (n + 63) / 64 * 64; }

std::vector<KvLayout> layouts(const ModelConfig& config, const CacheOptions& options) {
  std::vector<KvLayout> all;
  for (const LayerConfig& layer : config.layers) {
    all.push_back(kv_layout_of(config, layer, options.latent_format, options.index_format));
  }
  for (int64_t i = 0; options.with_mtp && i < config.num_mtp_layers; ++i) {
    all.push_back(
        kv_layout_of(config, config.mtp_layer, options.latent_format, options.index_format));
  }
  return all;
}

}  // namespace

int64_t cache_page_bytes(const ModelConfig& config, const CacheOptions& options) {
  int64_t bytes = 0;
  for (const KvLayout& l : layouts(config, options)) bytes += align64(l.page_bytes());
  return bytes;
}

PagedCache::PagedCache(const ModelConfig& config, const CacheOptions& options,
                       DeviceContext* device)
    : device_(device) {
  if (options.index_format == KvFormat::kFP8 && config.index_dim > 128) {
    throw UsageError("cache: an FP8 indexer key holds at most 128 values, index_head_dim is " +
                     std::to_string(config.index_dim));
  }
  page_bytes_ = cache_page_bytes(config, options);
  const auto bytes = static_cast<size_t>(page_bytes_ * options.pages);
  if (device != nullptr) {
    on_device_ = DeviceBuffer(*device, static_cast<int64_t>(bytes), "the cache");
    device->fill(on_device_.data(), 0, on_device_.bytes());
    pool_ = on_device_.data();
  } else {
    void* p = ::mmap(nullptr, bytes == 0 ? 1 : bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw_errno("cache of " + std::to_string(bytes) + " bytes");
    pool_ = static_cast<std::byte*>(p);
  }
  int64_t offset = 0;
  for (const KvLayout& l : layouts(config, options)) {
    layers_.push_back({l, pool_ + offset, page_bytes_});
    offset += align64(l.page_bytes());
  }
  references_.resize(static_cast<size_t>(options.pages));
  kept_.resize(static_cast<size_t>(options.pages));
  for (int64_t i = options.pages; i > 0; --i) free_.push_back(static_cast<int32_t>(i - 1));
}

PagedCache::~PagedCache() {
  if (pool_ != nullptr && device_ == nullptr) {
    const auto bytes = static_cast<size_t>(page_bytes_ * total_pages());
    ::munmap(pool_, bytes == 0 ? 1 : bytes);
  }
}

void PagedCache::copy_page(int32_t to, int32_t from) {
  if (device_ != nullptr) return device_->copy(page_data(to), page_data(from), page_bytes_);
  std::memcpy(page_data(to), page_data(from), static_cast<size_t>(page_bytes_));
}

PagedCache::HostPages PagedCache::host_pages() const {
  HostPages h{{}, layers_};
  if (device_ == nullptr) return h;
  h.bytes.resize(static_cast<size_t>(on_device_.bytes()));
  device_->download(h.bytes.data(), pool_, on_device_.bytes());
  for (KvLayer& l : h.layers) l.base = h.bytes.data() + (l.base - pool_);
  return h;
}

void PagedCache::write_back(const HostPages& pages) {
  if (device_ == nullptr) return;
  device_->upload(pool_, pages.bytes.data(), on_device_.bytes());
  device_->synchronize();
}

void PagedCache::read_page(int32_t page, std::span<std::byte> bytes) const {
  if (device_ != nullptr) return device_->download(bytes.data(), page_data(page), page_bytes_);
  std::memcpy(bytes.data(), page_data(page), bytes.size());
}

void PagedCache::write_page(int32_t page, std::span<const std::byte> bytes) {
  if (device_ == nullptr) {
    std::memcpy(page_data(page), bytes.data(), bytes.size());
    return;
  }
  device_->upload(page_data(page), bytes.data(), page_bytes_);
  device_->synchronize();
}

bool PagedCache::reserve(CachedSequence& s, int64_t tokens) {
  const int64_t need = pages_for(s.length + tokens) - static_cast<int64_t>(s.pages.size());
  if (need > free_pages()) return false;
  for (int64_t i = 0; i < need; ++i) {
    const int32_t page = free_.back();
    free_.pop_back();
    references_[static_cast<size_t>(page)] = 1;
    s.pages.push_back(page);
  }
  return true;
}

bool PagedCache::fork(const CachedSequence& from, int64_t length, CachedSequence& to) {
  const int64_t full = length / kPageTokens;
  if (length % kPageTokens != 0 && free_.empty()) return false;
  to.pages.assign(from.pages.begin(), from.pages.begin() + full);
  for (const int32_t page : to.pages) retain(page);
  to.length = full * kPageTokens;
  if (length == to.length) return true;
  reserve(to, length - to.length);
  copy_page(to.pages.back(), from.pages[static_cast<size_t>(full)]);
  to.length = length;
  return true;
}

void PagedCache::release(CachedSequence& s) {
  for (const int32_t page : s.pages) release_page(page);
  s.pages.clear();
  s.length = 0;
}

void PagedCache::retain(int32_t page) {
  int32_t& n = references_[static_cast<size_t>(page)];
  if (kept(page) && n == 1) --cached_;
  ++n;
}

void PagedCache::release_page(int32_t page) {
  int32_t& n = references_[static_cast<size_t>(page)];
  if (--n == 0) free_.push_back(page);
  if (kept(page) && n == 1) ++cached_;
}

void PagedCache::keep(int32_t page) {
  ++references_[static_cast<size_t>(page)];
  kept_[static_cast<size_t>(page)] = 1;
}

void PagedCache::forget(int32_t page) {
  if (references(page) == 1) --cached_;
  kept_[static_cast<size_t>(page)] = 0;
  release_page(page);
}

std::string PagedCache::audit(std::span<const CachedSequence* const> sequences,
                              std::span<const int32_t> kept_pages) const {
  std::vector<int32_t> want(references_.size());
  for (const CachedSequence* s : sequences) {
    if (pages_for(s->length) > static_cast<int64_t>(s->pages.size())) {
      return "a sequence of " + std::to_string(s->length) + " tokens has " +
             std::to_string(s->pages.size()) + " pages";
    }
    for (const int32_t p : s->pages) ++want.at(static_cast<size_t>(p));
  }
  std::vector<uint8_t> keep(references_.size());
  for (const int32_t p : kept_pages) {
    ++want.at(static_cast<size_t>(p));
    if (keep.at(static_cast<size_t>(p))++ != 0) return "a page is kept twice";
  }
  int64_t cached = 0, free = 0;
  for (size_t p = 0; p < want.size(); ++p) {
    if (want[p] != references_[p]) {
      return "page " + std::to_string(p) + " has " + std::to_string(references_[p]) +
             " references, " + std::to_string(want[p]) + " are held";
    }
    if (keep[p] != kept_[p]) return "page " + std::to_string(p) + ": its mark as kept is wrong";
    free += want[p] == 0 ? 1 : 0;
    cached += keep[p] != 0 && want[p] == 1 ? 1 : 0;
  }
  std::vector<int32_t> once(free_);
  std::sort(once.begin(), once.end());
  if (std::adjacent_find(once.begin(), once.end()) != once.end()) return "a page is free twice";
  if (free != free_pages())
    return std::to_string(free) + " pages are free, not " + std::to_string(free_pages());
  if (cached != cached_)
    return std::to_string(cached) + " pages are cached, not " + std::to_string(cached_);
  return "";
}

}  // namespace tamis
