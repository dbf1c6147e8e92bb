// A resumable checkpoint of a run: one safetensors file with the values of the ParameterTable and
// both moments, and where the run stands in its metadata. It appears under its name whole or not at
// all (base/atomic_file.h) and carries checksums, so a kill at any moment leaves the previous one.
//
//   OUT/checkpoints/step-00000120.safetensors      stage ends are kept, of the others the last few
#pragma once

#include <cstdint>
#include <future>
#include <optional>
#include <string>
#include <vector>

#include "train/parameters.h"

namespace tamis {

struct RunPosition {
  int64_t step = 0;        // steps done in all
  int64_t stage = 0;       // the stage of the next step; the number of stages when all is done
  int64_t stage_step = 0;  // steps done of it
  bool indexer_trained = false;
  // By group, model and indexer: the running mean of gradient norms, and the steps of the stage
  // that are in it.
  double norm_mean[2] = {};
  int64_t norm_steps[2] = {};
  bool stage_end = false;    // written at the end of a stage
  std::string recipe, data;  // Recipe::text and the checksum of the data: what the run belongs to
};

// All that a run goes on from, in the layout of the ParameterTable.
struct TrainingState {
  RunPosition position;
  int64_t clock_model = 0, clock_indexer = 0;  // steps of the optimiser
  std::vector<float> weights, first, second;   // and both moments
};

void save_checkpoint(const std::string& folder, const TrainingState& state,
                     const ParameterTable& table);

// The newest checkpoint of the folder, none if there is no file.
std::optional<std::string> newest_checkpoint(const std::string& folder);

// Those of stage ends, newest first.
std::vector<std::string> stage_end_checkpoints(const std::string& folder);

// InputError naming the file if it is damaged, or of a model of another shape.
TrainingState load_checkpoint(const std::string& path, const ParameterTable& table);

// Which checkpoints stay: the last few, those whose step is a multiple of `every` (0: none for
// that), and those of stage ends.
struct CheckpointRetention {
  int64_t last = 2, every = 0;
};
void remove_old_checkpoints(const std::string& folder, const CheckpointRetention& keep);

// Writes checkpoints beside the run, one at a time and in order, and removes old ones after each.
class CheckpointWriter {
 public:
  // Keeps a reference to the table.
  CheckpointWriter(std::string folder, const ParameterTable& table, CheckpointRetention keep);
  ~CheckpointWriter();  // waits; an error that wait() did not report is lost
  CheckpointWriter(const CheckpointWriter&) = delete;

  // Waits for the one before, and returns before this one is on the disk. Throws what the one
  // before has met, a full disk for example.
  void start(TrainingState state);
  // Until nothing is being written. Throws as start().
  void wait();

 private:
  std::string folder_;
  const ParameterTable& table_;
  CheckpointRetention keep_;
  std::future<void> writing_;
};

}  // namespace tamis
