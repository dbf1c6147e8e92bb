#include "model/weights.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "kernels/integer_weight.h"
#include "tensor/tensor.h"

namespace tamis {
namespace {

// A share of `total` for this rank.
struct Share {
  int64_t begin, count;
};

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const ModelConfig& config, const Group& group,
         ModelWeights& out)
      : checkpoint_(checkpoint), config_(config), group_(group), out_(out) {}

  Share share(int64_t total, const char* what) const {
    if (total % group_.size() != 0) {
      throw UsageError(std::to_string(group_.size()) + " ranks do not divide " + what + " (" +
                       std::to_string(total) + ")");
    }
    const int64_t count = total / group_.size();
    return {group_.rank() * count, count};
  }

  std::vector<float> vector(const std::string& name, int64_t size) const {
    const Tensor t = checkpoint_.tensor(name);
    check_shape(name, t.shape, Shape{size});
    if (t.dtype != DType::kF32 && t.dtype != DType::kF16 && t.dtype != DType::kBF16) {
      throw InputError(name + ": got " + std::string(dtype_name(t.dtype)) +
                       ", want F32, F16 or BF16");
    }
    std::vector<float> values(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) values[static_cast<size_t>(i)] = tensor_element(t, i);
    return values;
  }

  Weight matrix(const std::string& name, int64_t rows, int64_t cols) {
    const Tensor t = checkpoint_.tensor(name);
    Weight w;
    w.data = t.data;
    w.dtype = t.dtype;
    w.rows = rows;
    w.cols = cols;
    // safetensors has no 4-bit type: such a weight is U8 [rows, cols / 2] with its scales beside
    // it.
    if (t.dtype == DType::kU8 && checkpoint_.contains(name + "_scale")) w.dtype = DType::kI4;
    w.row_bytes = dtype_bytes(w.dtype, cols);
    check_shape(name, t.shape, Shape{rows, w.dtype == DType::kI4 ? w.row_bytes : cols});
    switch (w.dtype) {
      case DType::kF32:
      case DType::kF16:
      case DType::kBF16:
        break;
      case DType::kF8E4M3:
        add_fp8_scales(name, w);
        break;
      case DType::kI8:
      case DType::kI4:
        add_group_scales(name, w);
        break;
      default:
        throw InputError(name + ": got " + std::string(dtype_name(t.dtype)) +
                         ", want F32, F16, BF16, F8_E4M3 or a quantised weight with its scales");
    }
    return w;
  }

  Weight rows_of(const std::string& name, int64_t rows, int64_t cols, const char* what) {
    const Share s = share(rows, what);
    return matrix(name, rows, cols).row_slice(s.begin, s.count);
  }

  LayerWeights layer(const std::string& prefix, const LayerConfig& kind) {
    LayerWeights l;
    const int64_t d = config_.hidden_size;
    l.input_norm = vector(prefix + "input_layernorm.weight", d);
    l.post_attention_norm = vector(prefix + "post_attention_layernorm.weight", d);
    l.attention = attention(prefix + "self_attn.", kind);
    if (kind.ffn == FfnKind::kDense) {
      l.mlp = mlp(prefix + "mlp.", config_.intermediate, true);
    } else {
      l.moe = moe(prefix + "mlp.");
    }
    return l;
  }

 private:
  static void check_shape(const std::string& name, const Shape& got, const Shape& want) {
    if (!(got == want)) {
      throw InputError(name + ": got " + got.to_string() + ", want " + want.to_string());
    }
  }

  void add_fp8_scales(const std::string& name, Weight& w) {
    const std::string scale_name = name + "_scale_inv";
    const Tensor s = checkpoint_.tensor(scale_name);
    const Shape want{(w.rows + kFp8Block - 1) / kFp8Block, (w.cols + kFp8Block - 1) / kFp8Block};
    check_shape(scale_name, s.shape, want);
    check_scale_values(scale_name, s);
    std::vector<float>& values = out_.scales.emplace_back();
    for (int64_t i = 0; i < s.shape.elements(); ++i) values.push_back(tensor_element(s, i));
    w.scales = reinterpret_cast<const std::byte*>(values.data());
    w.scale_dtype = DType::kF32;
    w.scale_stride = want[1];
  }

  void add_group_scales(const std::string& name, Weight& w) const {
    const std::string scale_name = name + "_scale";
    const Tensor s = checkpoint_.tensor(scale_name);
    const Shape want{w.rows, (w.cols + kIntGroup - 1) / kIntGroup};
    check_shape(scale_name, s.shape, want);
    if (s.dtype != DType::kBF16) throw InputError(scale_name + ": want BF16");
    w.scales = s.data;
    w.scale_dtype = DType::kBF16;
    w.scale_stride = want[1];
  }

  AttentionWeights attention(const std::string& p, const LayerConfig& kind) {
    const ModelConfig& c = config_;
    const Share heads = share(c.num_heads, "num_attention_heads");
    const auto head_rows = [&](const std::string& name, int64_t per_head, int64_t cols) {
      return matrix(name, c.num_heads * per_head, cols)
          .row_slice(heads.begin * per_head, heads.count * per_head);
    };
    AttentionWeights a;
    a.q_a = matrix(p + "q_a_proj.weight", c.q_lora, c.hidden_size);
    a.q_a_norm = vector(p + "q_a_layernorm.weight", c.q_lora);
    a.q_b = head_rows(p + "q_b_proj.weight", c.qk_head(), c.q_lora);
    a.kv_a = matrix(p + "kv_a_proj_with_mqa.weight", c.kv_lora + c.rope, c.hidden_size);
    a.kv_a_norm = vector(p + "kv_a_layernorm.weight", c.kv_lora);
    a.kv_b = head_rows(p + "kv_b_proj.weight", c.nope + c.v_head, c.kv_lora);
    a.o = rows_of(p + "o_proj.weight", c.hidden_size, c.num_heads * c.v_head, "hidden_size");
    if (kind.indexer == IndexerKind::kOwn) a.indexer = indexer(p + "indexer.");
    return a;
  }

  IndexerWeights indexer(const std::string& p) {
    const ModelConfig& c = config_;
    IndexerWeights i;
    i.wq_b = matrix(p + "wq_b.weight", c.index_heads * c.index_dim, c.q_lora);
    i.wk = matrix(p + "wk.weight", c.index_dim, c.hidden_size);
    i.weights_proj = matrix(p + "weights_proj.weight", c.index_heads, c.hidden_size);
    i.k_norm_w = vector(p + "k_norm.weight", c.index_dim);
    i.k_norm_b = vector(p + "k_norm.bias", c.index_dim);
    return i;
  }

  MlpWeights mlp(const std::string& p, int64_t width, bool sliced) {
    const int64_t d = config_.hidden_size;
    const auto part = [&](const std::string& name, int64_t rows, int64_t cols, const char* what) {
      return sliced ? rows_of(name, rows, cols, what) : matrix(name, rows, cols);
    };
    return {part(p + "gate_proj.weight", width, d, "the MLP's width"),
            part(p + "up_proj.weight", width, d, "the MLP's width"),
            part(p + "down_proj.weight", d, width, "hidden_size")};
  }

  MoeWeights moe(const std::string& p) {
    const ModelConfig& c = config_;
    MoeWeights m;
    m.router = matrix(p + "gate.weight", c.num_experts, c.hidden_size);
    m.bias = vector(p + "gate.e_score_correction_bias", c.num_experts);
    for (const float b : m.bias.values) {
      // It only orders experts, so a bad one would change the model without a trace.
      if (!std::isfinite(b)) throw InputError(p + "gate.e_score_correction_bias: not finite");
    }
    const Share own = share(c.num_experts, "n_routed_experts");
    m.first_expert = own.begin;
    for (int64_t e = own.begin; e < own.begin + own.count; ++e) {
      m.experts.push_back(mlp(p + "experts." + std::to_string(e) + ".", c.moe_intermediate, false));
    }
    for (const MlpWeights& e : m.experts) {
      m.gates.weights.push_back(e.gate);
      m.ups.weights.push_back(e.up);
      m.downs.weights.push_back(e.down);
    }
    if (c.num_shared_experts > 0) {
      m.shared = mlp(p + "shared_experts.", c.moe_intermediate * c.num_shared_experts, true);
    }
    return m;
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const Group& group_;
  ModelWeights& out_;
};

bool has_integers(const MlpWeights& w) {
  return is_integer(w.gate) || is_integer(w.up) || is_integer(w.down);
}

bool has_integers(const LayerWeights& l) {
  const AttentionWeights& a = l.attention;
  if (is_integer(a.q_a) || is_integer(a.q_b) || is_integer(a.kv_a) || is_integer(a.kv_b) ||
      is_integer(a.o) || has_integers(l.mlp) || (l.moe.shared && has_integers(*l.moe.shared))) {
    return true;
  }
  return std::any_of(l.moe.experts.begin(), l.moe.experts.end(),
                     [](const MlpWeights& e) { return has_integers(e); });
}

std::string layer_prefix(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

}  // namespace

ModelWeights ModelWeights::load(const Checkpoint& checkpoint, const ModelConfig& config,
                                const Group& group, bool with_mtp) {
  ModelWeights w;
  Loader load(checkpoint, config, group, w);
  const int64_t d = config.hidden_size;
  w.first_vocab = load.share(config.vocab_size, "vocab_size").begin;
  w.embed = load.rows_of("model.embed_tokens.weight", config.vocab_size, d, "vocab_size");
  w.head = config.tie_word_embeddings
               ? w.embed
               : load.rows_of("lm_head.weight", config.vocab_size, d, "vocab_size");
  w.norm = load.vector("model.norm.weight", d);
  for (int64_t l = 0; l < config.num_layers(); ++l) {
    w.layers.push_back(load.layer(layer_prefix(l), config.layers[static_cast<size_t>(l)]));
  }
  if (!with_mtp) return w;
  for (int64_t i = 0; i < config.num_mtp_layers; ++i) {
    const std::string p = layer_prefix(config.num_layers() + i);
    MtpWeights m;
    m.enorm = load.vector(p + "enorm.weight", d);
    m.hnorm = load.vector(p + "hnorm.weight", d);
    m.eh_proj = load.matrix(p + "eh_proj.weight", d, 2 * d);
    m.norm = load.vector(p + "shared_head.norm.weight", d);
    m.layer = load.layer(p, config.mtp_layer);
    w.mtp.push_back(std::move(m));
  }
  return w;
}

bool ModelWeights::has_integers() const {
  return std::any_of(layers.begin(), layers.end(),
                     [](const LayerWeights& l) { return tamis::has_integers(l); });
}

}  // namespace tamis
