// A selector that measures what another one takes. On a GPU it waits for the device before and
// after, so that a pass with it is slower: for a pass now and then.
#pragma once

#include "model/selector.h"

namespace tamis {

class TimedSelector final : public Selector {
 public:
  // `of` must outlive it.
  explicit TimedSelector(const Selector& of) : of_(of) {}

  double seconds() const { return seconds_; }  // in select(), all calls together

  bool selects_all() const override { return of_.selects_all(); }
  int64_t topk() const override { return of_.topk(); }
  bool sees_own_heads_only() const override { return of_.sees_own_heads_only(); }
  bool same_every_step() const override { return false; }
  bool uses_indexer() const override { return of_.uses_indexer(); }
  void select(KernelContext& context, const SelectorInput& in, int32_t* indices,
              uint8_t* has_nan) const override;

 private:
  const Selector& of_;
  mutable double seconds_ = 0;
};

}  // namespace tamis
