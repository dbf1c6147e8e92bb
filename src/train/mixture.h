// What a stage learns from: sources with weights, each token shards or a task made from a seed.
//
//   Mixture mixture(sources, tokenizer_folder, shards);
//   mixture.append(seed, number, length, whole_documents, batch);
//
// Which source a sequence is drawn from, and the sequence, are functions of (seed, number).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "train/synthetic_tasks.h"
#include "train/token_data.h"

namespace tamis {

struct SourceSpec {
  std::string shards;  // folder of `tamis data build`, or
  std::optional<TaskSettings> task;
  double weight = 1;
  bool answers = false;  // of shards: whole conversations, in stages of every kind
  std::string name() const { return task ? std::string(task_name(task->kind)) : shards; }
};

// Folders that are open, each once.
using ShardCache = std::map<std::string, std::shared_ptr<const TokenData>>;

class Mixture {
 public:
  // InputError for shards of another tokenizer than `tokenizer` (a folder), or a tokenizer that
  // has not the end-of-text token of the tasks.
  Mixture(const std::vector<SourceSpec>& sources, const std::string& tokenizer, ShardCache& shards);

  // answers_only: whole documents, and a loss where their answers are (see TokenData), for shards
  // whose source does not say so already.
  void append(uint64_t seed, int64_t number, int64_t length, bool answers_only,
              MicroBatch& batch) const;

  // A sequence of source `index` alone.
  void append_from(size_t index, uint64_t seed, int64_t number, int64_t length, bool answers_only,
                   MicroBatch& batch) const;

  // InputError naming a source that has no sequences of this length, or no answers.
  void check(uint64_t seed, int64_t length, bool answers_only) const;

  size_t source_of(uint64_t seed, int64_t number) const;
  const std::vector<SourceSpec>& sources() const { return specs_; }
  int64_t tokens() const;      // of all shards
  int64_t vocab_size() const;  // of the tokenizer
  // Two mixtures with the same give the same sequences.
  std::string checksum() const;

 private:
  struct Source {
    std::shared_ptr<const TokenData> shards;
    std::unique_ptr<SyntheticTask> task;
    void append(uint64_t seed, int64_t number, int64_t length, bool answers_only,
                MicroBatch& batch) const;
  };
  std::vector<SourceSpec> specs_;
  std::vector<Source> list_;
  double total_ = 0;
  int64_t vocab_size_ = 0;
  std::string tokenizer_;
};

}  // namespace tamis
