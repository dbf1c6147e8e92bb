// OUT/log.jsonl, the record of a run: a line of JSON for each step and one for each validation. And
// OUT/tensorboard, the same numbers for TensorBoard, made from the lines.
#pragma once

#include <fstream>
#include <memory>
#include <string>

#include "train/event_file.h"
#include "train/trainer.h"

namespace tamis {

class TrainLog {
 public:
  // Opens the log; lines past `step`, of a run that was killed after its checkpoint, are dropped.
  // The event file is written anew from those that stay. DeviceError if one cannot be written.
  TrainLog(const std::string& folder, int64_t step);
  void add(const StepReport& report, const std::string& stage);

 private:
  void add_line(const std::string& line);

  std::string path_;
  std::ofstream out_;
  std::unique_ptr<EventFile> events_;
};

}  // namespace tamis
