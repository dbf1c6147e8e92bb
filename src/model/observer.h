// Looks into a forward pass: trace, verify and the evaluation tools implement it. Costs nothing
// when there is none.
#pragma once

#include <cstdint>
#include <string_view>

namespace tamis {

class KernelContext;
struct MlaSparseArgs;

class Observer {
 public:
  virtual ~Observer() = default;
  // floats() and ints() are not called, and nothing is copied for them, where nobody wants them.
  virtual bool wants_values() const { return true; }
  // The absorbed queries of a layer and what they attend to, before it is computed. Pointers are
  // the back end's, and valid during the call only.
  virtual void attention(KernelContext&, int64_t /*layer*/, const MlaSparseArgs&) {}
  // Index scores are computed for every row only when somebody wants them.
  virtual bool wants_index_scores() const { return false; }
  // A float result [rows, cols] of one layer (layer -1: of no layer): "hidden", "attn_out",
  // "mlp_out", "index_scores", "router.weights", "router.logits", "c_kv", "k_pe", "index_k", ...
  // as docs/trace.md lists them. The data is valid during the call only.
  virtual void floats(std::string_view name, int64_t layer, const float* data, int64_t rows,
                      int64_t cols) = 0;
  // "topk", "router.ids".
  virtual void ints(std::string_view name, int64_t layer, const int32_t* data, int64_t rows,
                    int64_t cols) = 0;
};

}  // namespace tamis
