// How well the lightning indexer chooses: its scores and its best k against the probabilities of
// dense attention, for one sequence. Nothing is learned here.
//
//   P[t,h,s]  dense attention of head h     p = mean over heads     I = the index score
//   S_t = the k best of I over s <= t
//
// Queries come in blocks, so memory grows with tokens. Rows are measured alone and summed in their
// order: the same bits on any number of threads.
#pragma once

#include <cstdint>

#include "kernels/indexer_kl/indexer_kl.h"

namespace tamis {

// Sums over queries. Those from `recall` on are over the `selecting` ones, which see more than k
// positions; the others have nothing to choose.
struct IndexerHealth {
  int64_t queries = 0, selecting = 0;
  double kl = 0;       // KL(p || softmax(I)) over every s <= t, nats
  double entropy = 0;  // of softmax(I), over its largest value log t; 1 for the first token

  double recall = 0;      // share of the k best of p that are in S_t
  double mass = 0;        // sum of p over S_t
  double worst_mass = 0;  // the same of the head that has least of its own P there
  double best_mass = 0;   // sum of p over its own k best: what no choice can exceed
  double first = 0;       // 1 where the best of p is in S_t
  double ties = 0;        // positions with the score of rank k, itself included
  double look_back = 0;   // mean of t - s over S_t
  double window = 0;      // share of S_t among the last k positions
  double negative = 0;    // share of the head weights below 0

  void add(const IndexerHealth& other);
};

template <typename T>
struct IndexerHealthArgs {
  IndexerSequence<T> indexer;  // its inputs
  MlaSequence<T> attention;    // the same tokens
  int64_t k = 0;
  IndexerHealth* sum = nullptr;  // added to
};

template <typename T>
void indexer_health(KernelContext& context, const IndexerHealthArgs<T>& args);

// One query over n positions: P [heads, stride], the mean p [n], scores [n], head weights w
// [index_heads].
struct HealthRow {
  const float* per_head = nullptr;
  int64_t stride = 0, heads = 0;
  const float* mean = nullptr;
  const float* score = nullptr;
  int64_t n = 0, k = 0;
  const float* w = nullptr;
  int64_t index_heads = 0;
};
IndexerHealth indexer_health_row(const HealthRow& row);

}  // namespace tamis
