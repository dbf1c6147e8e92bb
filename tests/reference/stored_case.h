// A stored case opened for comparison: its tensors, and a trace of the same tokens.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "eval/trace.h"
#include "reference/cases.h"
#include "support/test_backend.h"

namespace tamis {

struct Error {
  double max_abs = 0, rel_rms = 0;
};

// a against b; infinities must stand in the same places.
inline Error compare(const TraceTensor& a, const Tensor& b) {
  Error e;
  double diff = 0, norm = 0;
  for (size_t i = 0; i < a.floats.size(); ++i) {
    const float x = a.floats[i], y = tensor_element(b, static_cast<int64_t>(i));
    if (std::isinf(y) || std::isinf(x)) {
      EXPECT_EQ(x, y) << "at " << i;
      continue;
    }
    const double d = static_cast<double>(x) - y;
    e.max_abs = std::max(e.max_abs, std::abs(d));
    diff += d * d;
    norm += static_cast<double>(y) * y;
  }
  e.rel_rms = std::sqrt(diff / std::max(norm, 1e-300));
  return e;
}

class Case {
 public:
  explicit Case(const std::string& name) : folder(*case_folder(name)) {
    add(folder + "/expected/expected.safetensors");
    if (std::filesystem::exists(folder + "/expected/train.safetensors")) {
      add(folder + "/expected/train.safetensors");
    }
  }
  const Tensor* find(const std::string& name) const {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? nullptr : &it->second;
  }
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  std::vector<int32_t> ids(const std::string& name = "input_ids") const {
    const Tensor& t = tensors_.at(name);
    std::vector<int32_t> out;
    for (int64_t i = 0; i < t.shape.elements(); ++i) {
      out.push_back(static_cast<int32_t>(tensor_element(t, i)));
    }
    return out;
  }

  std::string folder;

 private:
  void add(const std::string& path) {
    files_.push_back(std::make_unique<SafetensorsFile>(path));
    for (const TensorInfo& info : files_.back()->header().tensors) {
      tensors_.emplace(info.name, files_.back()->tensor(info));
    }
  }
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, Tensor> tensors_;
};

// `folder`: where the checkpoint lies, if not in the case's own folder.
inline Trace trace_of(const Case& c, Backend backend, const LoadOptions& load, TraceOptions options,
                      const std::string& folder = "") {
  KernelContext context(2, backend);
  const LoadedModel model(folder.empty() ? c.folder : folder, load, single_group());
  const Tensor* greedy = c.find("greedy.ids");
  if (options.greedy == 0 && greedy != nullptr) options.greedy = greedy->shape[0];
  return record_trace(context, model, c.ids(), options);
}

}  // namespace tamis
