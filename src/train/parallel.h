// How the ranks of a training run divide a model.
//
// `tensor` neighbours compute one micro-batch together: each has 1 / tensor of the attention heads
// and of the width of every MLP. `expert` such groups, each with a micro-batch of its own, share
// the routed experts: each has 1 / expert of them and works on the tokens of all. Everything else
// is on every rank. With 8 ranks, expert = 2 and tensor = 2:
//
//   rank                     0  1  2  3  4  5  6  7
//   micro-batch of a round   0  0  1  1  2  2  3  3      data_index
//   part of heads, widths    0  1  0  1  0  1  0  1      tensor_index
//   part of the experts      0  0  1  1  0  0  1  1      expert_index
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "train/parameters.h"

namespace tamis {

struct ParallelLayout {
  int ranks = 1, expert = 1, tensor = 1;

  bool divided() const { return expert * tensor > 1; }  // no rank has the whole model
  int data() const { return ranks / tensor; }           // micro-batches of a round
  int data_index(int rank) const { return rank / tensor; }
  int tensor_index(int rank) const { return rank % tensor; }
  int expert_index(int rank) const { return data_index(rank) % expert; }
};

// InputError if the layout does not fit the number of ranks or the model, with what to do.
void check_layout(const ParallelLayout& layout, const ModelConfig& config);

// The model that a rank computes: fewer heads, narrower MLPs. All experts count; those of a rank
// are in its table.
ModelConfig config_of_rank(const ModelConfig& config, const ParallelLayout& layout);
// What it keeps of the values of `config`.
ParameterTable table_of_rank(const ModelConfig& config, const ParallelLayout& layout, int rank);

// Values of one tensor that a rank keeps: `rows` runs of `length`, `stride` apart in the whole
// table and side by side in its own.
struct Piece {
  ParameterGroup group = ParameterGroup::kModel;
  int64_t whole = 0, own = 0;
  int64_t rows = 1, length = 0, stride = 0;
  bool expert = false;
  bool copy = false;  // the tensor neighbour 0 has the same values
};
std::vector<Piece> pieces_of_rank(const ParameterTable& whole, const ParameterTable& own,
                                  const ParallelLayout& layout, int rank);

}  // namespace tamis
