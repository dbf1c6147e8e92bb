// Any bytes as a safetensors file. An accepted header covers the data exactly, with sizes that fit
// its shapes and names that differ; accepted or not, it takes memory in proportion to its length.
#include <sanitizer/allocator_interface.h>

#include <cstdint>
#include <cstdlib>
#include <set>
#include <string>

#include "base/error.h"
#include "checkpoint/safetensors.h"

namespace {

// Bytes that were allocated and not freed while counting, now and at most. The sanitizer calls the
// hooks below for every block.
struct Allocations {
  bool counting = false;
  int64_t now = 0;
  int64_t peak = 0;
};
thread_local Allocations allocations;

void count_malloc(const volatile void*, size_t size) {
  if (!allocations.counting) return;
  allocations.now += static_cast<int64_t>(size);
  if (allocations.now > allocations.peak) allocations.peak = allocations.now;
}

void count_free(const volatile void* p) {
  if (!allocations.counting || p == nullptr) return;
  allocations.now -= static_cast<int64_t>(__sanitizer_get_allocated_size(p));
}

void require(bool condition) {
  if (!condition) std::abort();
}

void check_accepted(const tamis::SafetensorsHeader& header, int64_t file_size) {
  std::set<std::string> names;
  int64_t end = 0;
  for (const tamis::TensorInfo& info : header.tensors) {
    require(info.offset == end);
    unsigned __int128 bits = static_cast<unsigned>(tamis::dtype_bits(info.dtype));
    for (int i = 0; i < info.shape.rank(); ++i) {
      require(info.shape[i] >= 0);
      bits *= static_cast<uint64_t>(info.shape[i]);
    }
    require(bits == static_cast<unsigned __int128>(info.bytes) * 8);
    require(!info.name.empty() && info.name.find('\0') == std::string::npos);
    require(names.insert(info.name).second);
    end += info.bytes;
  }
  require(header.header_bytes + end == file_size);
}

void run(std::span<const std::byte> bytes, int64_t file_size) {
  const int64_t limit = 20 * static_cast<int64_t>(bytes.size()) + 65536;
  tamis::SafetensorsHeader header;
  bool accepted = false;
  allocations = {true, 0, 0};
  try {
    header = tamis::parse_safetensors_header(bytes, file_size, "fuzz");
    accepted = true;
  } catch (const tamis::InputError&) {
    // Refused: what the rules are for.
  }
  allocations.counting = false;
  require(allocations.peak <= limit);
  if (accepted) check_accepted(header, file_size);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  require(__sanitizer_install_malloc_and_free_hooks(count_malloc, count_free) != 0);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  const int64_t exact = static_cast<int64_t>(size);
  run(bytes, exact);
  // The same header in a file far longer than the input, so that large offsets are met too. A
  // prefix shorter than its header is a misuse that the reader never commits.
  const int64_t longer[] = {4096, int64_t{1} << 40, INT64_MAX - exact};
  try {
    run(bytes, exact + longer[size % 3]);
  } catch (const tamis::UsageError&) {
    allocations.counting = false;
  }
  return 0;
}
