// The ranks of a data-parallel run: what each of them moves, and how they add and share.
//
// Every rank has all weights and computes the gradients of its own micro-batches; it keeps the sum
// of gradients and the moments of one part of each group alone and moves that part. Parts are whole
// blocks of kSquaresBlock values. Gradients are added in the order of their micro-batches and
// squares by blocks, so every number of ranks gives the same bits.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "comm/group.h"
#include "kernels/context.h"
#include "train/optimizer.h"
#include "train/parameters.h"

namespace tamis {

class Replicas {
 public:
  // All kept by reference. Values lie where the context's operations work; several ranks work on
  // CPUs alone: UsageError otherwise.
  Replicas(KernelContext& context, const ParameterTable& table, Group& group);

  int rank() const { return group_.rank(); }
  int size() const { return group_.size(); }
  // Values of `group` that a rank moves, as places in the table.
  ParameterTable::Range part(ParameterGroup group, int rank) const;
  std::array<ParameterTable::Range, 3> own_parts() const;

  // Collective. sum [own part] += gradients [table] of rank 0, 1, ... count - 1.
  void add_gradients(ParameterGroup group, float* gradients, int count, float* sum);
  // Collective. The norm of the whole group's gradient, of which each rank has sum [own part].
  double norm(ParameterGroup group, const float* sum);
  // Collective. values [table]: each rank's own part to all.
  void share(ParameterGroup group, float* values);
  // Collective. own [own part] of every rank to `whole` [table] of rank 0, on the host; unused
  // elsewhere.
  void gather(ParameterGroup group, const float* own, float* whole);
  // Collective. The numbers of all ranks, each with as many, rank after rank.
  std::vector<double> all(const std::vector<double>& own);
  void barrier() { group_.barrier(); }

 private:
  KernelContext& context_;
  const ParameterTable& table_;
  Group& group_;
  std::vector<float> received_;
};

}  // namespace tamis
