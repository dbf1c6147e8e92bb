// A resumable checkpoint of a run: one safetensors file with the values of the ParameterTable and
// both moments, and where the run stands in its metadata. It appears under its name whole or not at
// all (base/atomic_file.h) and carries checksums, so a kill at any moment leaves the previous one.
//
//   OUT/checkpoints/step-00000120.safetensors      stage ends are kept, of the others the last few
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train/optimizer.h"
#include "train/parameters.h"

namespace tamis {

struct RunPosition {
  int64_t step = 0;        // steps done in all
  int64_t stage = 0;       // the stage of the next step; the number of stages when all is done
  int64_t stage_step = 0;  // steps done of it
  bool indexer_trained = false;
  bool stage_end = false;    // written at the end of a stage
  std::string recipe, data;  // Recipe::text and the checksum of the data: what the run belongs to
};

void save_checkpoint(const std::string& folder, const RunPosition& position,
                     const ParameterTable& table, const std::vector<float>& weights,
                     Optimizer& optimizer);

// The newest checkpoint of the folder, none if there is no file.
std::optional<std::string> newest_checkpoint(const std::string& folder);

// InputError naming the file if it is damaged, or of a model of another shape.
RunPosition load_checkpoint(const std::string& path, const ParameterTable& table,
                            std::vector<float>& weights, Optimizer& optimizer);

// Removes all but the last `keep` checkpoints that are no stage ends, and what a killed write left.
void remove_old_checkpoints(const std::string& folder, int64_t keep);

}  // namespace tamis
