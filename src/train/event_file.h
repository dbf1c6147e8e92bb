// A TensorBoard event file: scalars over steps.
//
//   EventFile file("run/tensorboard", wall_time);
//   file.add(wall_time, step, {{"train/loss", 2.31}});
//
// The format is TensorFlow's: records of {length, masked CRC-32C of the length, data, masked
// CRC-32C of the data}, each an Event of tensorflow/core/util/event.proto.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tamis {

class EventFile {
 public:
  // Makes FOLDER/events.out.tfevents.SECONDS.tamis and removes other event files of the folder.
  // DeviceError if it cannot be written. Times are seconds since 1970.
  EventFile(const std::string& folder, double wall_time);

  void add(double wall_time, int64_t step,
           const std::vector<std::pair<std::string, double>>& scalars);

 private:
  void record(const std::string& event);

  std::string path_;
  std::ofstream out_;
};

// CRC-32C (Castagnoli) of the bytes, as RFC 3720 has it.
uint32_t crc32c(std::string_view bytes);

}  // namespace tamis
