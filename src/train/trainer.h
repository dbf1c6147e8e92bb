// A training run: the stages of a recipe, one after the other, with checkpoints from which a killed
// run goes on with the same bits.
//
//   Trainer trainer(Recipe::load("train.toml", {}), context);
//   trainer.run(steps, report);     OUT/checkpoints, OUT/log.jsonl, OUT/STAGE (a model folder)
#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/function_ref.h"
#include "comm/group.h"
#include "kernels/buffer.h"
#include "kernels/context.h"
#include "train/mixture.h"
#include "train/model.h"
#include "train/optimizer.h"
#include "train/recipe.h"
#include "train/replicas.h"
#include "train/train_checkpoint.h"
#include "train/validation.h"

namespace tamis {

// What one step did; a line of OUT/log.jsonl.
struct StepReport {
  int64_t step = 0, stage = 0, stage_step = 0;  // counted from 1
  double loss = 0;                              // nats a token; NaN in a warm-up
  std::vector<double> kl;                       // nats a token, by layer; empty if none was learned
  double mtp_loss = 0;                          // nats a target; 0 without that module
  double balance = 0;                           // mean over sequences, summed over layers
  double norm_model = 0, norm_indexer = 0;      // of the gradients before the clip
  double lr_model = 0, lr_indexer = 0;
  double most_loaded = 0;  // the busiest expert's tokens over the mean, the worst layer
  int64_t tokens = 0;
  double seconds = 0;
  double flops = 0;    // of the step, see cost.h
  int64_t memory = 0;  // bytes of activations and work space, with a GPU's scratch memory
  std::optional<ValidationReport> validation;  // after the step, if it was its turn
  bool skipped = false;  // a gradient was not finite, or a spike: nothing moved
};

class Trainer {
 public:
  // Reads the model, the data and the newest checkpoint of the run, if there is one. InputError if
  // they do not fit together, each with what to do: another tokenizer, sequences longer than the
  // model or the data allow, an indexer that the model lacks, a sparse stage whose indexer is
  // fresh, a checkpoint of another recipe or of other data.
  Trainer(Recipe recipe, KernelContext& context);
  // One of several ranks, on CPUs or with a GPU each (Replicas), which all have the same recipe
  // (InputError if not) and see the same files: they compute the micro-batches of a step in turn,
  // and divide the model as the recipe says (parallel.h). The bits are those of one rank, but with
  // tensor parallelism, which adds in another order; rank 0 alone writes.
  Trainer(Recipe recipe, KernelContext& context, Group& group);
  ~Trainer();

  // One line about stage `index`: attention, KL set, what learns.
  std::string stage_line(int64_t index) const;
  // What the run needs: parameters, memory, work of each stage. Several lines.
  std::string plan() const;
  double flops() const;  // of all stages

  const Recipe& recipe() const { return recipe_; }
  const RunPosition& position() const { return position_; }
  // Collective. A copy of the whole model's, on rank 0.
  std::vector<float> weights();

  // Runs until the end, or until `last_step` steps are done in all, and leaves a checkpoint.
  // DeviceError if max_skips steps in a row had no finite gradient.
  void run(int64_t last_step, FunctionRef<void(const StepReport&)> report);

 private:
  void check() const;
  void place(const float* values, int64_t count, Buffer<float>& to);
  void place_weights(const float* whole);
  void clear_values(Buffer<float>& values);
  void check_stage(int64_t index, bool indexer_ready) const;
  StepReport step();
  MicroBatch micro_batch(int64_t stage, int64_t first, int64_t count) const;
  std::vector<ParameterGroup> trained_groups(const Stage& stage) const;
  std::vector<MicroBatch> draw_step(int64_t stage, int64_t stage_step) const;
  std::vector<MicroBatch> take_step();
  std::vector<double> compute(const Stage& stage, const std::vector<MicroBatch>& batches,
                              const Objective& objective);
  void accumulate(const Stage& stage, StepReport& report);
  void move(const Stage& stage, StepReport& report);
  bool is_spike(ParameterGroup group, double norm) const;
  void remember_norm(ParameterGroup group, double norm);
  // The model's configuration in a stage: YaRN may have come with one up to it.
  ModelConfig config_of(int64_t stage) const;
  void set_up_ranks(Group& group);
  void set_config(const ModelConfig& config);
  void set_up_mtp(const std::string& config);
  void check_validation() const;
  bool validates_now() const;
  void end_stage();
  void restore();
  void take(const TrainingState& found);
  void branch();
  TrainingState state();
  void save(bool stage_end);

  Trainer(Recipe recipe, KernelContext& context, std::unique_ptr<Group> own, Group* group);

  std::unique_ptr<Group> own_group_;
  Recipe recipe_;
  KernelContext& context_;
  std::string config_text_;
  ModelConfig base_config_, config_;  // as the run begins, as the stage has it
  ModelConfig own_config_;            // what this rank computes of it
  std::unique_ptr<ParameterTable> table_;
  ShardCache shards_;
  std::vector<Mixture> data_;  // of each stage
  std::optional<Mixture> held_out_;
  std::unique_ptr<Replicas> replicas_;
  // Where the operations work. gradients_: of the micro-batch at work.
  Buffer<float> weights_, gradients_;
  // This rank's part of each group: the sum of the step's gradients; in a divided layout also the
  // weights, which it need not compute with.
  Buffer<float> sums_[2], moved_[2];
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<TrainModel<float>> model_;
  std::unique_ptr<CheckpointWriter> writer_;
  std::vector<std::vector<int64_t>> load_;  // of the step
  RunPosition position_;
  bool indexer_at_start_ = false;  // the run began with a trained indexer
  // The batches of the stage's step `ahead_step_`, drawn while the one before is computed.
  std::future<std::vector<MicroBatch>> ahead_;
  int64_t ahead_step_ = 0;
};

}  // namespace tamis
