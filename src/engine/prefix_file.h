// Whose kept prefixes a file holds (PrefixFile::made_by).
#pragma once

#include <cstdint>
#include <string>

#include "engine/loaded_model.h"
#include "engine/paged_cache.h"

namespace tamis {

// A hash of all that the bits of a page depend on: the checkpoint's configuration and files (names,
// sizes, times), precision and formats, this program's file, the processor; and of `more`, where
// the caller puts the back end and the tenants. DeviceError if a file cannot be looked at.
uint64_t prefix_maker(const LoadedModel& model, const CacheOptions& cache, const std::string& more);

}  // namespace tamis
