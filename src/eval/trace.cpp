#include "eval/trace.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "kernels/quantize_fp8/quantize_fp8.h"
#include "tensor/convert.h"

namespace tamis {
namespace {

TraceTensor make_floats(std::vector<int64_t> shape, std::vector<float> values) {
  return {std::move(shape), std::move(values), {}, false};
}

TraceTensor make_ints(std::vector<int64_t> shape, std::vector<int64_t> values) {
  return {std::move(shape), {}, std::move(values), true};
}

// Collects what the model shows. Rows of later chunks are appended to those of earlier ones; score
// rows of different widths are padded with -inf.
class Recorder final : public Observer {
 public:
  Recorder(Trace& out, int64_t total) : out_(out), total_(total) {}

  bool wants_index_scores() const override { return true; }

  void floats(std::string_view name, int64_t layer, const float* data, int64_t rows,
              int64_t cols) override {
    if (name == "kv_a") return;
    const bool scores = name == "index_scores";
    TraceTensor& t = tensor(key(name, layer), scores ? total_ : cols, rows, false);
    for (int64_t r = 0; r < rows; ++r) {
      t.floats.insert(t.floats.end(), data + r * cols, data + (r + 1) * cols);
      if (scores) {
        t.floats.resize(t.floats.size() + static_cast<size_t>(total_ - cols),
                        -std::numeric_limits<float>::infinity());
      }
    }
    if (name == "router.logits") add_sigmoid(layer, data, rows, cols);
  }

  void ints(std::string_view name, int64_t layer, const int32_t* data, int64_t rows,
            int64_t cols) override {
    TraceTensor& t = tensor(key(name, layer), cols, rows, true);
    t.ints.insert(t.ints.end(), data, data + rows * cols);
  }

 private:
  void add_sigmoid(int64_t layer, const float* logits, int64_t rows, int64_t cols) {
    TraceTensor& s = tensor(key("router.scores", layer), cols, rows, false);
    for (int64_t i = 0; i < rows * cols; ++i) {
      s.floats.push_back(1.0F / (1.0F + std::exp(-logits[i])));
    }
  }

  // "router.ids" of layer 3 is "router.3.ids"; "c_kv" of layer 0 is "kv_cache.0.c_kv".
  static std::string key(std::string_view name, int64_t layer) {
    if (layer < 0) return std::string(name);
    const std::string l = std::to_string(layer);
    if (name.rfind("router.", 0) == 0) return "router." + l + std::string(name.substr(6));
    if (name == "c_kv" || name == "index_k") return "kv_cache." + l + "." + std::string(name);
    return std::string(name) + "." + l;
  }

  TraceTensor& tensor(const std::string& name, int64_t cols, int64_t rows, bool is_int) {
    TraceTensor& t = out_[name];
    if (t.shape.empty()) t.shape = {0, cols};
    t.is_int = is_int;
    t.shape[0] += rows;
    return t;
  }

  Trace& out_;
  int64_t total_;
};

// Decode steps keep the selection only.
class SelectionRecorder final : public Observer {
 public:
  explicit SelectionRecorder(Trace& out) : out_(out) {}
  void floats(std::string_view, int64_t, const float*, int64_t, int64_t) override {}
  void ints(std::string_view name, int64_t layer, const int32_t* data, int64_t rows,
            int64_t cols) override {
    if (name != "topk") return;
    TraceTensor& t = out_["greedy.topk." + std::to_string(layer)];
    if (t.shape.empty()) t = make_ints({0, cols}, {});
    t.shape[0] += rows;
    t.ints.insert(t.ints.end(), data, data + rows * cols);
  }

 private:
  Trace& out_;
};

// One sequence's forward passes for a trace.
class Tracer {
 public:
  Tracer(KernelContext& context, const LoadedModel& model, const TraceOptions& options,
         int64_t tokens)
      : context_(context),
        model_(model),
        options_(options),
        selector_(make_selector(policy())),
        cache_(model.config(),
               {pages_for(tokens + options.greedy + 1), options.latent_format, options.index_format,
                options.mtp},
               context.device()) {}

  // Logits of every token, row by row.
  std::vector<float> run(const std::vector<int32_t>& ids, Observer* observer, bool prefill) {
    return forward(
        ids, observer,
        [&](const Batch& batch) {
          model_.model().forward(context_, batch, selector(), act_, observer);
        },
        prefill);
  }

  std::vector<float> run_mtp(const std::vector<int32_t>& next, const float* hidden,
                             Observer* observer) {
    sequence_.length = 0;  // the layer has its own entries, written from position 0
    return forward(
        next, observer,
        [&](const Batch& batch) {
          model_.model().forward_mtp(context_, batch, 0, hidden, selector(), act_, observer);
        },
        true);
  }

  // Moves every page's entries up by one slot, the last token's place holding a copy.
  void shift() {
    const PagedCache::HostPages pages = cache_.host_pages();
    for (const KvLayer& kv : pages.layers) {
      const KvSequence seq{sequence_.pages.data()};
      const int64_t width = kv.layout.kv_lora + kv.layout.rope;
      std::vector<float> row(static_cast<size_t>(width)),
          key(static_cast<size_t>(std::max<int64_t>(kv.layout.index_dim, 1)));
      for (int64_t s = sequence_.length - 1; s > 0; --s) {
        read_latent(kv, seq, s - 1, row.data());
        write_latent(kv, seq, s, row.data(), row.data() + kv.layout.kv_lora);
        if (kv.layout.index_dim == 0) continue;
        read_index_key(kv, seq, s - 1, key.data());
        write_index_key(kv, seq, s, key.data(), model_.config().ue8m0_scales);
      }
    }
    cache_.write_back(pages);
  }

  PagedCache::HostPages pages() const { return cache_.host_pages(); }
  const KvSequence sequence() const { return {sequence_.pages.data()}; }

 private:
  const Selector& selector() const {
    return options_.selector != nullptr ? *options_.selector : *selector_;
  }

  SelectionPolicy policy() const {
    SelectionPolicy p = options_.policy;
    p.topk = model_.config().index_topk;
    if (!model_.config().has_indexer() && p.kind == AttentionKind::kSparse) {
      p.kind = AttentionKind::kDense;
    }
    return p;
  }

  template <typename Forward>
  std::vector<float> forward(const std::vector<int32_t>& ids, Observer*, Forward run_model,
                             bool prefill) {
    const auto n = static_cast<int64_t>(ids.size());
    cache_.reserve(sequence_, n);
    std::vector<int32_t> positions(ids.size()), sequence(ids.size(), 0), rows(ids.size());
    std::iota(positions.begin(), positions.end(), static_cast<int32_t>(sequence_.length));
    std::iota(rows.begin(), rows.end(), 0);
    std::vector<float> logits(ids.size() * static_cast<size_t>(model_.config().vocab_size));
    const KvSequence seq{sequence_.pages.data()};
    const bool expanded = prefill && model_.model().options().precision == Precision::kNative;
    const BatchSequence whole{0, n, expanded};
    int32_t failed = -1;
    Batch b;
    b.tokens = {n, sequence.data(), positions.data(), &seq};
    b.ids = ids.data();
    b.sequences = {&whole, 1};
    b.kv = cache_.view();
    b.logit_rows = rows;
    b.logits = logits.data();
    b.failed_layer = &failed;
    run_model(b);
    if (failed >= 0) {
      throw InputError("layer " + std::to_string(failed) +
                       ": a result is not a finite number (NaN or infinity in the weights?)");
    }
    sequence_.length += n;
    return logits;
  }

  KernelContext& context_;
  const LoadedModel& model_;
  const TraceOptions& options_;
  std::unique_ptr<Selector> selector_;
  PagedCache cache_;
  CachedSequence sequence_;
  Activations act_;
};

void record_prefill(Tracer& tracer, const std::vector<int32_t>& ids, const TraceOptions& options,
                    int64_t vocab, Trace& trace) {
  const auto n = static_cast<int64_t>(ids.size());
  const int64_t chunk = options.chunk > 0 ? options.chunk : n;
  Recorder recorder(trace, n);
  std::vector<float> logits;
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t end = std::min(n, begin + chunk);
    const std::vector<float> part =
        tracer.run({ids.begin() + begin, ids.begin() + end}, &recorder, true);
    logits.insert(logits.end(), part.begin(), part.end());
  }
  trace["logits"] = make_floats({n, vocab}, std::move(logits));
}

// k_pe as it lies in the cache; native precision: also the FP8 keys and their scales.
void record_cache(const Tracer& tracer, const LoadedModel& model, int64_t n, Trace& trace) {
  const ModelConfig& c = model.config();
  const KvSequence seq = tracer.sequence();
  const PagedCache::HostPages pages = tracer.pages();
  for (int64_t l = 0; l < c.num_layers(); ++l) {
    const KvLayer& kv = pages.layers[static_cast<size_t>(l)];
    const std::string prefix = "kv_cache." + std::to_string(l) + ".";
    std::vector<float> row(static_cast<size_t>(c.kv_lora + c.rope)), k_pe;
    for (int64_t s = 0; s < n; ++s) {
      read_latent(kv, seq, s, row.data());
      k_pe.insert(k_pe.end(), row.begin() + c.kv_lora, row.end());
    }
    trace[prefix + "k_pe"] = make_floats({n, c.rope}, std::move(k_pe));
    if (kv.layout.index_dim == 0 || kv.layout.index_format != KvFormat::kFP8) continue;
    TraceTensor& keys = trace[prefix + "index_k"];
    keys.floats.clear();
    std::vector<float> scales;
    for (int64_t s = 0; s < n; ++s) {
      const auto* page = reinterpret_cast<const uint8_t*>(index_page(kv, seq, s));
      const int64_t slot = s % kPageTokens;
      for (int64_t i = 0; i < c.index_dim; ++i) {
        keys.floats.push_back(e4m3_to_float(page[slot * c.index_dim + i]));
      }
      float scale;
      std::memcpy(&scale, page + kPageTokens * c.index_dim + slot * 4, sizeof scale);
      scales.push_back(scale);
    }
    trace[prefix + "index_k_scale"] = make_floats({n, 1}, std::move(scales));
  }
}

void record_greedy(Tracer& tracer, const TraceOptions& options, int64_t vocab, Trace& trace) {
  if (options.greedy <= 0) return;
  const std::vector<float>& all = trace["logits"].floats;
  std::vector<float> last(all.end() - vocab, all.end()), logits;
  std::vector<int64_t> ids;
  SelectionRecorder recorder(trace);
  if (options.shift_cache) tracer.shift();
  for (int64_t step = 0; step < options.greedy; ++step) {
    logits.insert(logits.end(), last.begin(), last.end());
    const auto best = std::max_element(last.begin(), last.end()) - last.begin();
    ids.push_back(best);
    if (step + 1 < options.greedy) {
      last = tracer.run({static_cast<int32_t>(best)}, &recorder, false);
    }
  }
  trace["greedy.ids"] = make_ints({options.greedy}, std::move(ids));
  trace["greedy.logits"] = make_floats({options.greedy, vocab}, std::move(logits));
}

void record_mtp(Tracer& tracer, const LoadedModel& model, const std::vector<int32_t>& ids,
                Trace& trace) {
  const int64_t vocab = model.config().vocab_size;
  const auto rows = static_cast<int64_t>(ids.size()) - 1;
  if (rows < 1) throw InputError("multi-token prediction needs at least 2 tokens");
  const std::vector<float> hidden = trace["hidden.norm"].floats;
  Trace inner;
  Recorder recorder(inner, rows);
  std::vector<float> logits =
      tracer.run_mtp({ids.begin() + 1, ids.end()}, hidden.data(), &recorder);
  trace["mtp.hidden"] = inner["mtp.hidden"];
  trace["mtp.logits"] = make_floats({rows, vocab}, std::move(logits));
}

void record_constants(const ModelConfig& c, Trace& trace) {
  std::vector<float> freq = rope_inv_freq(c.rope, c.rope_theta, c.yarn_or_null());
  trace["rope.inv_freq"] = make_floats({c.rope / 2}, std::move(freq));
  trace["rope.attention_scaling"] =
      make_floats({1}, {static_cast<float>(rope_attention_scaling(c.yarn_or_null()))});
  trace["softmax_scale"] = make_floats({1}, {c.softmax_scale()});
}

}  // namespace

Trace record_trace(KernelContext& context, const LoadedModel& model,
                   const std::vector<int32_t>& ids, const TraceOptions& options) {
  if (ids.empty()) throw InputError("no token ids to trace");
  const int64_t vocab = model.config().vocab_size;
  Trace trace;
  Tracer tracer(context, model, options, static_cast<int64_t>(ids.size()));
  record_prefill(tracer, ids, options, vocab, trace);
  record_cache(tracer, model, static_cast<int64_t>(ids.size()), trace);
  record_constants(model.config(), trace);
  trace["input_ids"] = make_ints({static_cast<int64_t>(ids.size())}, {ids.begin(), ids.end()});
  record_greedy(tracer, options, vocab, trace);
  if (options.mtp) record_mtp(tracer, model, ids, trace);
  return trace;
}

void write_trace(const Trace& trace, const std::string& path) {
  std::vector<TensorSpec> specs;
  const auto wide = [](const std::string& name) {
    return name == "input_ids" || name == "greedy.ids";
  };
  for (const auto& [name, t] : trace) {
    const DType type = !t.is_int ? DType::kF32 : wide(name) ? DType::kI64 : DType::kI32;
    specs.push_back({name, type, Shape(std::span<const int64_t>(t.shape))});
  }
  SafetensorsWriter out(path, specs, {{"format", "pt"}});
  for (const auto& [name, t] : trace) {
    if (!t.is_int) {
      out.append_tensor(name, std::as_bytes(std::span(t.floats)));
    } else if (wide(name)) {
      out.append_tensor(name, std::as_bytes(std::span(t.ints)));
    } else {
      const std::vector<int32_t> narrow(t.ints.begin(), t.ints.end());
      out.append_tensor(name, std::as_bytes(std::span(narrow)));
    }
  }
  out.commit();
}

}  // namespace tamis
