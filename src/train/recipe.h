// What a training run does: the TOML file of `tamis train`, checked. docs/training.md has every
// key.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/mixture.h"
#include "train/optimizer.h"
#include "train/schedule.h"

namespace tamis {

enum class StageKind : uint8_t {
  kPretrain,  // dense attention, language-model loss
  kWarmup,    // dense attention, only the indexer learns: KL over every earlier token
  kSparse,    // top-k attention: language-model loss, and KL over the selected set for the indexer
  kDense,  // dense attention, language-model loss: the control that continues a sparse run's start
  kSft,    // language-model loss on answers alone; with a top-k as kSparse, else dense attention
};
std::string stage_name(StageKind kind);

struct Stage {
  StageKind kind = StageKind::kPretrain;
  std::string name;  // of its checkpoint and export; the kind's name unless given
  int64_t steps = 0;
  int64_t batch = 1;                // sequences a step
  int64_t micro_batch = 1;          // of them at once
  int64_t length = 0;               // tokens of a sequence
  bool recompute = false;           // keep less for the backward pass
  int64_t topk = 0;                 // of sparse attention; 0: dense attention
  std::vector<SourceSpec> sources;  // of its sequences
  // YaRN from this stage on: positions up to rope_factor * rope_original. 0: as before; the
  // original length is the model's own unless given.
  double rope_factor = 0;
  int64_t rope_original = 0;
  AdamwSettings model, indexer;
  Schedule schedule;
  double kl_weight = 1;          // warm-up and sparse: of the mean KL a token, summed over layers
  double mtp_weight = 0;         // lambda of the loss of multi-token prediction
  double balance_weight = 1e-4;  // alpha of the sequence-wise balance loss
  double bias_speed = 1e-3;      // gamma of the router's bias

  // With a top-k: whether it runs over masked tiles of all keys (sparse_form.h). Not a key of the
  // recipe: the trainer decides.
  bool masked = false;
  // Likewise, from run.precision: linear layers of FP8 factors (linear_layers.h).
  bool fp8 = false;

  bool trains_model() const { return kind != StageKind::kWarmup; }
  bool sparse() const { return topk > 0; }
  bool trains_indexer() const { return kind == StageKind::kWarmup || (sparse() && kl_weight > 0); }
  bool answers_only() const { return kind == StageKind::kSft; }
};

struct Recipe {
  std::string from;       // a checkpoint folder to start from; empty: a fresh model
  std::string config;     // config.json, if it is not the one of `from`
  std::string tokenizer;  // folder with tokenizer.json
  std::string out;
  // The folder of another run that agrees in its first stages: a fresh run takes weights, moments
  // and clocks from the end of the last of them. Empty: it begins at the beginning.
  std::string branch_from;
  uint64_t seed = 0;
  bool save = true;  // checkpoints and model folders; else nothing but the logs stays
  int64_t save_every = 100, keep_last = 2,
          keep_every = 0;              // steps; checkpoints besides those of stage ends
  std::vector<SourceSpec> validation;  // held out; empty: no validation
  int64_t validate_every = 100, validation_sequences = 16;  // steps; sequences of each source
  int64_t measure_sequences = 1 << 20;  // of those, on which the indexer is measured
  int64_t max_skips = 10;               // steps in a row that do not move the model and end the run
  // A step is skipped when a group's gradient norm exceeds this many times the mean of its earlier
  // steps in the stage; 0: only when it is not finite.
  double spike_factor = 0;
  std::string export_dtype = "bf16";  // or f32
  std::vector<Stage> stages;
  std::string backend = "cpu";  // or cuda, reference
  // What products round their factors to: f32, bf16 (CUDA), or fp8: those of linear layers to e4m3,
  // the others as bf16 has them on CUDA and as f32 has them on a CPU.
  std::string precision = "f32";
  std::string mode = "deterministic";  // or fast: rows of sparse attention in any order (CUDA)
  std::string sparse_form = "auto";    // or gather, mask: of sparse attention, see sparse_form.h
  int64_t expert_parallel = 1, tensor_parallel = 1;  // ranks, see parallel.h
  // The whole recipe but the back end and what ranks divide, canonical: a run goes on only with the
  // one it began with.
  std::string text;

  int64_t total_steps() const;
  // Whether the recipe `text` of another run gives the same weights up to the end of its first
  // `stages` stages: the same model, data, seed, precision and stages.
  bool begins_like(const std::string& text, int64_t stages) const;

  // `settings` are KEY=VALUE changes, e.g. "stage.0.steps=10", "run.seed=3". InputError "WHERE:
  // key:
  // ..." for an unknown key, a wrong type or a value out of range; paths are relative to the folder
  // of the file.
  static Recipe load(const std::string& path, const std::vector<std::string>& settings);
};

}  // namespace tamis
