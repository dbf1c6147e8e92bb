// Where a GPU reads prompts faster in the absorbed form of attention than in the expanded one
// (ModelOptions::expand_below): `tamis plan --measure` measures and stores it, every other command
// takes what is stored.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "model/config.h"

namespace tamis::cli {

// $TAMIS_CACHE, else $XDG_CACHE_HOME/tamis, else $HOME/.cache/tamis, and in it crossover.json;
// empty if none of the three is set.
std::string crossover_file();

// What the position depends on: the GPU's name and the shape of the attention.
std::string crossover_key(const std::string& gpu, const ModelConfig& config);

// Nothing without a file or an entry. InputError for a file that is not what store_crossover wrote.
std::optional<int64_t> stored_crossover(const std::string& file, const std::string& key);
// Adds or replaces an entry; makes the folder. DeviceError if that fails.
void store_crossover(const std::string& file, const std::string& key, int64_t position);

}  // namespace tamis::cli
