#include "train/parallel.h"

#include <fmt/format.h>

#include <unordered_map>

#include "base/error.h"

namespace tamis {
namespace {

void check_divides(int parts, int64_t whole, const char* what, const char* key) {
  if (whole % parts == 0) return;
  throw InputError(fmt::format("run.{}: {} does not divide the model's {} {}; choose a divisor",
                               key, parts, whole, what));
}

bool has_experts(const ModelConfig& config) {
  bool any = config.num_mtp_layers > 0 && config.mtp_layer.ffn == FfnKind::kMoe;
  for (const LayerConfig& layer : config.layers) any = any || layer.ffn == FfnKind::kMoe;
  return any;
}

}  // namespace

void check_layout(const ParallelLayout& l, const ModelConfig& config) {
  if (!l.divided()) return;
  if (l.ranks % (l.expert * l.tensor) != 0) {
    throw InputError(fmt::format(
        "run.expert_parallel {} and run.tensor_parallel {} want a multiple of {} ranks, got {}; "
        "start with mpirun -n {}, or give --expert-parallel and --tensor-parallel that fit",
        l.expert, l.tensor, l.expert * l.tensor, l.ranks, l.expert * l.tensor));
  }
  if (l.expert > 1 && !has_experts(config)) {
    throw InputError("run.expert_parallel: the model has no experts; leave it at 1");
  }
  check_divides(l.expert, config.num_experts, "experts", "expert_parallel");
  check_divides(l.tensor, config.num_heads, "attention heads", "tensor_parallel");
  check_divides(l.tensor, config.intermediate, "columns of the MLP", "tensor_parallel");
  if (has_experts(config)) {
    check_divides(l.tensor, config.moe_intermediate, "columns of an expert", "tensor_parallel");
  }
}

ModelConfig config_of_rank(const ModelConfig& config, const ParallelLayout& layout) {
  ModelConfig own = config;
  own.num_heads /= layout.tensor;
  own.intermediate /= layout.tensor;
  own.moe_intermediate /= layout.tensor;
  return own;
}

ParameterTable table_of_rank(const ModelConfig& config, const ParallelLayout& layout, int rank) {
  ExpertShare share;
  if (layout.expert > 1) {
    share.count = config.num_experts / layout.expert;
    share.first = share.count * layout.expert_index(rank);
  }
  return {config_of_rank(config, layout), share};
}

std::vector<Piece> pieces_of_rank(const ParameterTable& whole, const ParameterTable& own,
                                  const ParallelLayout& layout, int rank) {
  std::unordered_map<std::string, const Parameter*> by_name;
  for (const Parameter& p : whole.list()) by_name[p.name] = &p;
  const int64_t part = layout.tensor_index(rank);
  std::vector<Piece> pieces;
  for (const Parameter& p : own.list()) {
    const Parameter& all = *by_name.at(p.name);
    Piece piece{p.group, all.offset, p.offset, 1, p.size(), p.size()};
    piece.expert = p.offset >= own.experts().begin && p.offset < own.experts().end;
    piece.copy = p.size() == all.size() && part > 0;
    if (p.size() != all.size() && p.shape[0] == all.shape[0]) {  // columns
      piece.rows = p.shape[0];
      piece.length = p.shape[1];
      piece.stride = all.shape[1];
      piece.whole += part * piece.length;
    } else if (p.size() != all.size()) {  // rows
      piece.whole += part * p.size();
    }
    pieces.push_back(piece);
  }
  return pieces;
}

}  // namespace tamis
