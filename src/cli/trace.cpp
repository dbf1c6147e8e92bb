// tamis trace: everything inside one forward pass, in a safetensors file.
#include "eval/trace.h"

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/support.h"
#include "train/gradient_trace.h"

namespace tamis::cli {
namespace {

struct TraceFlags {
  ModelFlags model;
  std::string ids_file, out, gradient;
  TraceOptions trace;
};

int run_trace(const TraceFlags& f) {
  const auto context = f.model.make_context();
  const std::vector<int32_t> ids = read_ids_file(f.ids_file);
  if (!f.gradient.empty()) {
    write_gradients(*context, f.model.folder, gradient_from_name(f.gradient), ids, f.out);
    f.model.explain(*context);
    return 0;
  }
  const auto model = f.model.load(f.trace.mtp);
  TraceOptions options = f.trace;
  options.policy = f.model.policy(model->config());
  const CacheOptions cache = f.model.cache_options();
  options.latent_format = cache.latent_format;
  options.index_format = cache.index_format;
  const Trace trace = record_trace(*context, *model, ids, options);
  if (model->group().rank() == 0) write_trace(trace, f.out);
  f.model.explain(*context);
  return 0;
}

}  // namespace

void add_trace(CLI::App& app, CommandBody& chosen) {
  const auto f = std::make_shared<TraceFlags>();
  CLI::App* c = app.add_subcommand("trace", "Record everything inside one forward pass");
  f->model.precision = "exact";
  f->model.add_to(*c);
  c->add_option("--ids-file", f->ids_file, "JSON array of token ids")->required();
  c->add_option("--out", f->out, "The safetensors file to write")->required();
  c->add_option("--greedy", f->trace.greedy, "Also this many greedy tokens")
      ->check(CLI::Range(0, 1 << 20));
  c->add_option("--chunk", f->trace.chunk, "Prefill in chunks of this many tokens")
      ->check(CLI::Range(1, 1 << 30));
  c->add_flag("--mtp", f->trace.mtp, "Also the multi-token-prediction layer");
  c->add_option("--grad", f->gradient,
                "Instead: the loss and its gradients. lm, dense, stage1 or stage2");
  c->footer(
      "Keys: logits, hidden.L, hidden.norm, attn_out.L, mlp_out.L, index_scores.L, topk.L,\n"
      "router.L.ids/weights/logits/scores, kv_cache.L.c_kv/k_pe/index_k, "
      "greedy.ids/logits/topk.L,\n"
      "mtp.hidden, mtp.logits. docs/trace.md describes each.\n\n"
      "Examples:\n"
      "  echo '[0,5,9]' > ids.json\n"
      "  tamis trace -m models/tamis-mini --ids-file ids.json --out t.safetensors --greedy 16\n"
      "  TAMIS_OP=mla_sparse:ref tamis trace -m DIR --ids-file ids.json --out t.safetensors");
  c->callback([f, &chosen] { chosen = [f] { return run_trace(*f); }; });
}

}  // namespace tamis::cli
