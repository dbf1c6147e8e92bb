// Writes one file of a conversion, tensor by tensor.
#pragma once

#include <functional>
#include <string>

#include "base/thread_pool.h"
#include "checkpoint/convert_plan.h"
#include "checkpoint/convert_record.h"

namespace tamis {

struct ConvertContext {
  const ConvertSource* source = nullptr;
  const ConvertOptions* options = nullptr;
  ThreadPool* pool = nullptr;
  std::function<void(int64_t bytes)> wrote;  // bytes of tensors since the last call
};

// FOLDER/file.name, under its name only when it is whole and on the disk. At most about 50 MiB of
// memory, whatever the size of the tensors.
ConvertRecord::File write_convert_file(const ConvertContext& context, const std::string& folder,
                                       const ConvertFile& file);

}  // namespace tamis
