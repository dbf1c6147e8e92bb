// Kept prefixes in a file, across restarts. docs/formats/cache.md describes it byte by byte.
#include "engine/prefix_file.h"

#include <sys/stat.h>
#include <xxhash.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/mapped_file.h"
#include "engine/prefix_cache.h"

namespace tamis {
namespace {

constexpr char kMagic[8] = {'T', 'A', 'M', 'I', 'S', 'K', 'V', '1'};

struct FileHead {
  char magic[8];
  uint64_t made_by;     // PrefixFile::made_by
  uint64_t page_bytes;  // of the cache
  uint64_t checksum;    // of the fields above
};

// Before each page: where it hangs, its tokens. A root's name follows if it is the first below it.
struct RecordHead {
  int64_t parent;      // number of an earlier record; -1: a root
  uint32_t name_size;  // bytes of the root's name, which follow; 0 where parent is a record
  int32_t count;       // tokens
  int32_t tokens[kPageTokens];
};

uint64_t checksum_of(const void* bytes, size_t size, uint64_t seed) {
  return XXH3_64bits_withSeed(bytes, size, seed);
}

uint64_t head_checksum(const FileHead& h) {
  return checksum_of(&h, offsetof(FileHead, checksum), 0);
}

std::string state_of(const std::string& path) {
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0) throw_errno(path);
  return path + ' ' + std::to_string(s.st_size) + ' ' + std::to_string(s.st_mtim.tv_sec) + ' ' +
         std::to_string(s.st_mtim.tv_nsec) + '\n';
}

// Another processor may take other instructions.
std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  std::string all;
  for (std::string line; std::getline(info, line) && !line.empty();) {
    if (line.starts_with("model name") || line.starts_with("flags")) all += line + '\n';
  }
  return all;
}

}  // namespace

uint64_t prefix_maker(const LoadedModel& model, const CacheOptions& cache,
                      const std::string& more) {
  const Checkpoint& c = model.checkpoint();
  std::string all(c.config_text());
  for (size_t i = 0; i < c.shards().size(); ++i) {
    all += state_of(c.folder() + "/" + c.shard_name(static_cast<int>(i)));
  }
  for (const int n :
       {static_cast<int>(model.model().options().precision), static_cast<int>(cache.latent_format),
        static_cast<int>(cache.index_format), cache.with_mtp ? 1 : 0}) {
    all += std::to_string(n) + ' ';
  }
  all += state_of("/proc/self/exe") + processor() + more;
  return checksum_of(all.data(), all.size(), 0);
}

// Parents first, most recently used first; a page whose parent did not fit is left out with it.
int64_t PrefixCache::save(const PrefixFile& file) const {
  AtomicFile out(file.path, AtomicFile::TemporaryName::kFixed);
  std::filesystem::permissions(out.temporary_path(), std::filesystem::perms::owner_read |
                                                         std::filesystem::perms::owner_write);
  FileHead head{};
  std::memcpy(head.magic, kMagic, sizeof kMagic);
  head.made_by = file.made_by;
  head.page_bytes = static_cast<uint64_t>(cache_.page_bytes());
  head.checksum = head_checksum(head);
  out.write(std::as_bytes(std::span(&head, 1)));
  std::unordered_map<const Node*, int64_t> numbers;
  std::vector<std::byte> record, page(static_cast<size_t>(cache_.page_bytes()));
  for (const Node* n : recent_) {
    const bool top = n->parent->parent == nullptr;
    if (!top && !numbers.contains(n->parent)) continue;
    RecordHead r{};
    r.parent = top ? -1 : numbers.at(n->parent);
    r.name_size = top ? static_cast<uint32_t>(n->parent->name.size()) : 0;
    r.count = n->count;
    std::copy(n->tokens.begin(), n->tokens.end(), r.tokens);
    const int64_t size =
        static_cast<int64_t>(sizeof r + r.name_size + sizeof(uint64_t)) + cache_.page_bytes();
    if (out.bytes_written() + size > file.max_bytes) break;
    record.resize(sizeof r + r.name_size);
    std::memcpy(record.data(), &r, sizeof r);
    if (top) std::memcpy(record.data() + sizeof r, n->parent->name.data(), r.name_size);
    cache_.read_page(n->page, page);
    // Its place is part of it: records that change places are no longer whole.
    const auto number = static_cast<int64_t>(numbers.size());
    uint64_t sum = checksum_of(record.data(), record.size(), static_cast<uint64_t>(number));
    sum = checksum_of(page.data(), page.size(), sum);
    out.write(record);
    out.write(page);
    out.write(std::as_bytes(std::span(&sum, 1)));
    numbers.emplace(n, number);
  }
  out.commit();
  return static_cast<int64_t>(numbers.size());
}

// Nothing in the file is believed before its checksum: what does not hold, and all that follows
// it, is left out.
PrefixLoad PrefixCache::load(const PrefixFile& file) {
  PrefixLoad result;
  if (!std::filesystem::exists(file.path)) return result;
  const MappedFile map(file.path);
  FileHead head{};
  const auto size = static_cast<size_t>(map.size());
  if (size < sizeof head) return {0, "it is cut short"};
  std::memcpy(&head, map.data(), sizeof head);
  if (std::memcmp(head.magic, kMagic, sizeof kMagic) != 0 || head.checksum != head_checksum(head)) {
    return {0, "it is damaged, or not of this program"};
  }
  if (head.made_by != file.made_by ||
      head.page_bytes != static_cast<uint64_t>(cache_.page_bytes())) {
    return {0, "it was made with another model, program, configuration or other keys"};
  }
  const auto page_bytes = static_cast<size_t>(cache_.page_bytes());
  std::vector<Node*> nodes;
  for (size_t at = sizeof head; at < size;) {
    RecordHead r{};
    const size_t left = size - at;
    if (left < sizeof r) return {result.pages, "it is cut short"};
    std::memcpy(&r, map.data() + at, sizeof r);
    const size_t before = sizeof r + r.name_size;
    if (left < before + page_bytes + sizeof(uint64_t)) return {result.pages, "it is cut short"};
    const std::byte* page = map.data() + at + before;
    uint64_t sum = 0, want = checksum_of(map.data() + at, before, nodes.size());
    want = checksum_of(page, page_bytes, want);
    std::memcpy(&sum, page + page_bytes, sizeof sum);
    const bool fits = r.count > 0 && r.count <= kPageTokens && r.parent >= -1 &&
                      r.parent < static_cast<int64_t>(nodes.size()) &&
                      (r.parent < 0) == (r.name_size > 0);
    if (sum != want || !fits) return {result.pages, "a page of it is damaged"};
    CachedSequence s;
    if (!cache_.reserve(s, kPageTokens)) break;
    cache_.write_page(s.pages[0], {page, page_bytes});
    const std::string name(reinterpret_cast<const char*>(map.data() + at + sizeof r), r.name_size);
    Node& parent = r.parent < 0 ? root(name) : *nodes[static_cast<size_t>(r.parent)];
    Node* n = add(parent, Tokens(r.tokens).first(static_cast<size_t>(r.count)), s.pages[0]);
    recent_.splice(recent_.end(), recent_, n->recent);  // the file has the most recent one first
    cache_.release(s);
    nodes.push_back(n);
    ++result.pages;
    at += before + page_bytes + sizeof(uint64_t);
  }
  return result;
}

}  // namespace tamis
