// The ranks of a run: what each of them moves, and how they add and share.
//
// A rank computes the gradients of its own micro-batches with the weights that its layout gives it
// (parallel.h), all of them unless the run divides the model; it keeps the sum of gradients and the
// moments of one part of each group alone and moves that part. Parts are whole blocks of
// kSquaresBlock values of the whole table, in every layout. Gradients are added in the order of
// their micro-batches and squares by blocks, so every number of ranks gives the same bits.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/group.h"
#include "kernels/buffer.h"
#include "kernels/context.h"
#include "train/optimizer.h"
#include "train/parallel.h"
#include "train/parameters.h"

namespace tamis {

class Replicas {
 public:
  // Collective; all kept by reference. Values lie where the context's operations work; ranks with a
  // GPU each move them by NCCL (comm/nccl.h) and divide no model: UsageError otherwise. InputError
  // if the layout does not fit (check_layout).
  Replicas(KernelContext& context, const ModelConfig& config, const ParameterTable& table,
           Group& group, int expert_parallel, int tensor_parallel);

  int rank() const { return group_.rank(); }
  int size() const { return group_.size(); }
  const ParallelLayout& layout() const { return layout_; }
  // The tensors that this rank computes with: the whole table unless the layout divides it.
  const ParameterTable& own_table() const { return layout_.divided() ? tables_.front() : table_; }
  // Values of a rank's gradients: own_table(), and its experts' once more for each other
  // micro-batch that they work on.
  int64_t gradient_size() const;
  // The groups that compute together; null in a layout without them.
  Group* expert_group() const { return experts_.get(); }
  Group* tensor_group() const { return tensor_.get(); }
  // own [own_table()] = this rank's share of whole [table].
  void take_own(const float* whole, float* own) const;
  // Values of `group` that a rank moves, as places in the table.
  ParameterTable::Range part(ParameterGroup group, int rank) const;
  std::array<ParameterTable::Range, 3> own_parts() const;

  // Collective. sum [own part] += gradients [gradient_size()] of micro-batches 0, 1, .. count - 1
  // of the round.
  void add_gradients(ParameterGroup group, float* gradients, int count, float* sum);
  // Collective. The norm of the whole group's gradient, of which each rank has sum [own part].
  double norm(ParameterGroup group, const float* sum);
  // Collective. values [table]: each rank's own part to all. Not in a divided layout.
  void share(ParameterGroup group, float* values);
  // Collective, in a divided layout. moved [own part] of every rank to values [own_table()] of
  // those that keep them.
  void distribute(ParameterGroup group, const float* moved, float* values);
  // Collective. own [own part] of every rank to `whole` [table] of rank 0, on the host; unused
  // elsewhere.
  void gather(ParameterGroup group, const float* own, float* whole);
  // Collective. The numbers of all ranks, each with as many, rank after rank.
  std::vector<double> all(const std::vector<double>& own);
  // Collective. InputError `message` unless `text` is the same on all ranks.
  void expect_same(const std::string& text, const std::string& message);
  void barrier() { group_.barrier(); }

 private:
  // Runs of values that a rank keeps, `own` in its array, `whole` in the table.
  struct Run {
    int64_t own, whole, length;
  };
  struct Contribution {  // to the sum, of micro-batch `data` of the round
    int data;
    Run run;
  };
  std::vector<Run> runs_in(int rank, ParameterGroup group,
                           const ParameterTable::Range& range) const;
  std::vector<Contribution> contributions(int rank, ParameterGroup group, int count,
                                          const ParameterTable::Range& range) const;
  void add_divided(ParameterGroup group, const float* gradients, int count, float* sum);
  void exchange(const std::vector<int64_t>& sizes, const std::vector<int64_t>& wanted);
  void make_groups();

  KernelContext& context_;
  const ParameterTable& table_;
  Group& group_;                         // of host memory
  std::unique_ptr<Group> device_group_;  // of the values, where they lie on a GPU
  Group& values_;                        // the one that moves them
  ParallelLayout layout_;
  // In a divided layout: this rank's table; every rank's pieces.
  std::vector<ParameterTable> tables_;
  std::vector<std::vector<Piece>> pieces_;
  std::unique_ptr<Group> experts_, tensor_;
  Buffer<float> gathered_;
  std::vector<float> sent_, received_;
};

}  // namespace tamis
