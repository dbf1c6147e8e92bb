// Which earlier positions a token attends to. The learned indexer is one answer among several:
// researchers compare them, and the controls of `tamis verify` and `tamis eval` need them.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "kernels/indexer_logits/indexer_logits.h"
#include "kernels/mla_sparse/mla_sparse.h"

namespace tamis {

enum class AttentionKind : uint8_t { kSparse, kDense, kWindow, kRandom, kOracle };

// "sparse", "dense", "window", "random", "oracle"; UsageError for any other name.
AttentionKind attention_from_name(std::string_view name);
std::string_view attention_name(AttentionKind kind);

struct SelectionPolicy {
  AttentionKind kind = AttentionKind::kSparse;
  int64_t topk = 0;
  uint64_t seed = 0;  // kRandom
};

struct SelectorInput {
  int64_t layer = 0;
  IndexerArgs indexer;      // sparse: queries and weights of this layer's indexer
  MlaSparseArgs attention;  // oracle: the absorbed queries of this layer
  TokenMap tokens;  // on the host, as given; indexer and attention have those of the back end
};

class Selector {
 public:
  virtual ~Selector() = default;
  // Everything visible is selected: there is nothing to run.
  virtual bool selects_all() const { return false; }
  // Positions it selects at most, the width of `indices`; 0 if it selects all.
  virtual int64_t topk() const { return 0; }
  // Chooses by the attention of this rank's heads alone. Over several ranks that is another choice
  // on each, so the model refuses it there.
  virtual bool sees_own_heads_only() const { return false; }
  // Reads nothing on the host: the operations it runs depend on the sizes of its input alone.
  virtual bool same_every_step() const { return false; }
  // Needs the indexer's queries.
  virtual bool uses_indexer() const { return false; }
  // indices [tokens, topk]: ascending, padded with -1; at least one each. has_nan [tokens]: 1 where
  // the scores were not numbers, else 0.
  virtual void select(KernelContext& context, const SelectorInput& in, int32_t* indices,
                      uint8_t* has_nan) const = 0;
};

std::unique_ptr<Selector> make_selector(const SelectionPolicy& policy);

}  // namespace tamis
