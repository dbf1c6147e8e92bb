#!/usr/bin/env python3
"""Cost of a training step per token against length, dense beside sparse, at DeepSeek-V3.2's shapes.

    bench/training_cost.py run --tamis build/cuda/tamis --out bench/results/DATE-training-cost.jsonl
    bench/training_cost.py plot RESULTS.jsonl docs/performance/training-cost.svg

The model is one layer: V3.2's attention and indexer (128 heads, latent 512 + 64, 64 index heads of 128,
top-k 2,048) and an MLP of width 2,048, so that attention is most of a step. Each length trains one
sequence a step, nearly full of one document. A length that does not fit on the GPU is left out, and said.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

CONFIG = {
    'architectures': ['DeepseekV32ForCausalLM'], 'model_type': 'deepseek_v32', 'hidden_size': 7168,
    'num_hidden_layers': 1, 'first_k_dense_replace': 1, 'intermediate_size': 2048, 'vocab_size': 8192,
    'num_attention_heads': 128, 'num_key_value_heads': 128, 'q_lora_rank': 1536, 'kv_lora_rank': 512,
    'qk_nope_head_dim': 128, 'qk_rope_head_dim': 64, 'v_head_dim': 128, 'index_n_heads': 64,
    'index_head_dim': 128, 'index_topk': 2048, 'rms_norm_eps': 1e-6, 'rope_theta': 10000,
    'max_position_embeddings': 163840, 'hidden_act': 'silu', 'attention_bias': False,
    'n_routed_experts': 8, 'num_experts_per_tok': 2, 'n_shared_experts': 1, 'n_group': 1,
    'topk_group': 1, 'moe_intermediate_size': 256, 'scoring_func': 'sigmoid',
    'topk_method': 'noaux_tc', 'norm_topk_prob': True, 'routed_scaling_factor': 2.5,
    'tie_word_embeddings': False, 'initializer_range': 0.02, 'bos_token_id': 0, 'eos_token_id': 1}

RECIPE = '''[model]
config = "config.json"
tokenizer = "{tokenizer}"
[data]
train = [{{ task = "recall", queries = 16 }}]
[run]
out = "run"
save_every = 1000000
keep_last = 1
export = "bf16"
precision = "{precision}"
'''
STAGE = '''
[[stage]]
kind = "{kind}"
steps = {steps}
batch = 1
micro_batch = 1
length = {length}
lr = 1e-5
'''


def train(args, folder, length):
    """[{length, stage, ...}] of one length; [] when it does not fit."""
    with open(os.path.join(folder, 'config.json'), 'w', encoding='utf-8') as file:
        json.dump({**CONFIG, 'num_attention_heads': args.heads, 'num_key_value_heads': args.heads}, file)
    warmup = max(4096, 2 * CONFIG['index_topk'])
    stages = [('dense', args.steps, length), ('warmup', 1, warmup), ('sparse', args.steps, length)]
    with open(os.path.join(folder, 'train.toml'), 'w', encoding='utf-8') as file:
        file.write(RECIPE.format(tokenizer=os.path.abspath(args.tokenizer), precision=args.precision))
        for kind, steps, tokens in stages:
            kind = 'pretrain' if kind == 'dense' else kind
            file.write(STAGE.format(kind=kind, steps=steps, length=tokens))
            if kind == 'sparse':
                file.write(f"topk = {CONFIG['index_topk']}\n")
    done = subprocess.run(
        [os.path.abspath(args.tamis), 'train', '-c', 'train.toml', '--backend', args.backend],
        cwd=folder, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        print(f'{length}: ended with {done.returncode}: {done.stdout.strip()[-400:]}', file=sys.stderr)
    best = {}  # the fastest step of each stage
    try:
        with open(os.path.join(folder, 'run', 'log.jsonl'), encoding='utf-8') as lines:
            for row in map(json.loads, lines):
                if row.get('stage') in ('pretrain', 'sparse') and row.get('tokens', 0) > 0.8 * length:
                    name = {'pretrain': 'dense'}.get(row['stage'], row['stage'])
                    if name not in best or row['seconds'] < best[name]['seconds']:
                        best[name] = row
    except FileNotFoundError:
        pass
    return [{'length': length, 'attention': name, 'heads': args.heads, 'precision': args.precision,
             'tokens': row['tokens'], 'seconds': row['seconds'],
             'us_per_token': 1e6 * row['seconds'] / row['tokens']} for name, row in best.items()]


def run(args):
    with open(args.out, 'a', encoding='utf-8') as out:
        for length in args.lengths:
            with tempfile.TemporaryDirectory() as folder:
                for row in train(args, folder, length):
                    print(json.dumps(row), file=out, flush=True)
                    print(f"{length:7d} {row['attention']:6s} {row['us_per_token']:9.2f} us a token")


def plot(args):
    import matplotlib  # pylint: disable=import-outside-toplevel
    matplotlib.use('svg')
    import matplotlib.pyplot as plt  # pylint: disable=import-outside-toplevel
    with open(args.results, encoding='utf-8') as lines:
        rows = [json.loads(line) for line in lines]
    matplotlib.rcParams['svg.hashsalt'] = 'tamis'  # the same bytes for the same data
    figure, axes = plt.subplots(figsize=(7, 4))
    for attention, style in (('sparse', 'o-'), ('dense', 's--')):
        for heads in sorted({r['heads'] for r in rows}, reverse=True):
            points = sorted((r['length'], r['us_per_token']) for r in rows
                            if r['attention'] == attention and r['heads'] == heads)
            if points:
                axes.plot(*zip(*points), style, label=f'{attention}, {heads} heads')
    lengths = sorted({r['length'] for r in rows})
    axes.set_xscale('log', base=2)
    axes.set_xticks(lengths)
    axes.set_xticklabels([f'{n // 1024}K' for n in lengths])
    axes.set_xlabel('tokens of a sequence')
    axes.set_ylabel('microseconds a token, one layer')
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(title='attention')
    figure.tight_layout()
    figure.savefig(args.svg, metadata={'Date': None})


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    measure = commands.add_parser('run', help='train and append JSON lines')
    measure.add_argument('--tamis', required=True)
    measure.add_argument('--out', required=True)
    measure.add_argument('--tokenizer', default='models/tamis-mini')
    measure.add_argument('--backend', default='cuda')
    measure.add_argument('--precision', default='bf16')
    measure.add_argument('--heads', type=int, default=128)
    measure.add_argument('--steps', type=int, default=3)
    measure.add_argument('--lengths', default=[4096, 8192, 16384, 32768, 65536, 131072],
                         type=lambda text: [int(part) for part in text.split(',')])
    measure.set_defaults(call=run)
    draw = commands.add_parser('plot', help='draw the lines of a result')
    draw.add_argument('results')
    draw.add_argument('svg')
    draw.set_defaults(call=plot)
    args = parser.parse_args()
    args.call(args)


if __name__ == '__main__':
    main()
