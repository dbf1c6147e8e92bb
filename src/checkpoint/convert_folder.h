// The folder that a conversion writes into: ours alone, with nothing in it that is not ours.
#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "checkpoint/convert_record.h"

namespace tamis {

class ConvertFolder {
 public:
  // Makes the folder if there is none and locks it until destruction. UsageError if it is the
  // source's, or if another process is converting into it.
  ConvertFolder(const std::string& path, const std::string& source);
  ~ConvertFolder();
  ConvertFolder(const ConvertFolder&) = delete;
  ConvertFolder& operator=(const ConvertFolder&) = delete;

  // What an earlier run of the same conversion finished. InputError if the folder holds something
  // else; with `force`, weights, index and records there are removed instead. `names` are the files
  // of this conversion: what a killed run left half-written of them is removed.
  ConvertRecord claim(const ConvertRecord& fresh, const std::set<std::string>& names, bool force);

  // DeviceError if the disk has fewer than `bytes` bytes free.
  void check_space(int64_t bytes) const;

  const std::string& path() const { return path_; }

 private:
  std::set<std::string> contents() const;
  void remove(const std::string& name) const;

  std::string path_;
  int fd_ = -1;
};

}  // namespace tamis
