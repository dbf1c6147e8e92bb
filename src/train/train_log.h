// OUT/log.jsonl: a line of JSON for each step, the record of a run.
#pragma once

#include <fstream>
#include <string>

#include "train/trainer.h"

namespace tamis {

class TrainLog {
 public:
  // Opens the log; lines past `step`, of a run that was killed after its checkpoint, are dropped.
  // DeviceError if it cannot be written.
  TrainLog(const std::string& path, int64_t step);
  void add(const StepReport& report, const std::string& stage);

 private:
  std::string path_;
  std::ofstream out_;
};

}  // namespace tamis
