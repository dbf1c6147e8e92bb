// A trained model as a folder in Hugging Face layout that `tamis generate` and others read.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/rope/rope.h"
#include "train/parameters.h"

namespace tamis {

struct ExportOptions {
  std::string folder;       // made if absent
  std::string config_text;  // of the model that was trained
  std::string tokenizer;    // folder whose tokenizer files are copied
  // False: the indexer was never trained. The folder then holds a deepseek_v3 model, which attends
  // to everything, instead of one that would select at random.
  bool with_indexer = true;
  int64_t topk = 0;  // index_topk of the config, unless 0
  // YaRN that the run has put in, and the positions it reaches; none: as config_text says.
  std::optional<YarnConfig> yarn;
  int64_t max_position = 0;
  double rope_theta = 0;
  bool bf16 = true;  // matrices; vectors stay float32
};

void export_model(const ExportOptions& options, const ParameterTable& table,
                  const std::vector<float>& weights);

}  // namespace tamis
