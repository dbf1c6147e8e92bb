#!/usr/bin/env python3
"""Cost of a training step per token against length, dense beside sparse, at DeepSeek-V3.2's shapes.

    bench/training_cost.py run --tamis build/cuda/tamis --out bench/results/DATE-training-cost.jsonl
    bench/training_cost.py plot RESULTS.jsonl docs/performance/training-cost.svg

The model is one layer: V3.2's attention and indexer (128 heads, latent 512 + 64, 64 index heads of 128,
top-k 2,048) and an MLP of width 2,048, so that attention is most of a step. Each length trains one
sequence a step, nearly full of one document; the faster of its steps counts. Nothing is saved, and one
run of the program goes through all lengths. A length that does not fit on the GPU is left out, and said.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

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
save = false
precision = "{precision}"
sparse_form = "{form}"
'''
STAGE = '''
[[stage]]
kind = "{kind}"
name = "{name}-{length}"
steps = {steps}
batch = 1
micro_batch = 1
length = {length}
lr = 1e-5
recompute = {recompute}
'''

NAMES = {'pretrain': 'dense', 'warmup': 'indexer warm-up', 'sparse': 'sparse',
         'recompute': 'sparse, recomputed'}
KINDS = {'recompute': 'sparse'}  # the stage's kind, where it is not the name
STYLES = {'sparse': 'o-', 'recompute': 'v-', 'pretrain': 's--', 'warmup': '^:'}


def memory_used():
    """MiB of the GPU in use; 0 without one."""
    device = os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0]
    try:
        used = subprocess.run(
            ['nvidia-smi', '-i', device, '--query-gpu=memory.used', '--format=csv,noheader,nounits'],
            check=False, stdout=subprocess.PIPE, text=True).stdout
        return int(used or 0)
    except FileNotFoundError:
        return 0


def train(args, form, stages):
    """Trains the stages [(kind, length)] one after the other; yields a row for each that ended, until
    one of them does not fit."""
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, 'config.json'), 'w', encoding='utf-8') as file:
            json.dump({**CONFIG, 'num_attention_heads': args.heads,
                       'num_key_value_heads': args.heads}, file)
        with open(os.path.join(folder, 'train.toml'), 'w', encoding='utf-8') as file:
            file.write(RECIPE.format(tokenizer=os.path.abspath(args.tokenizer),
                                     precision=args.precision, form=form))
            # An indexer that never learned may not choose.
            for kind, length in [('warmup', 2 * CONFIG['index_topk'] - 1), *stages]:
                file.write(STAGE.format(kind=KINDS.get(kind, kind), name=kind, steps=args.steps,
                                        length=length, recompute=str(kind == 'recompute').lower()))
                if KINDS.get(kind, kind) == 'sparse':
                    file.write(f"topk = {CONFIG['index_topk']}\n")
        log = os.path.join(folder, 'run', 'log.jsonl')
        with open(os.path.join(folder, 'out.txt'), 'w+', encoding='utf-8') as out, subprocess.Popen(
                [os.path.abspath(args.tamis), 'train', '-c', 'train.toml', '--backend', args.backend],
                cwd=folder, stdout=out, stderr=subprocess.STDOUT) as process:
            seen, peak, best = 0, 0, {}
            while True:
                ended = process.poll() is not None
                peak = max(peak, memory_used())
                lines = []
                if os.path.exists(log):
                    with open(log, encoding='utf-8') as file:
                        lines = [line for line in file if line.endswith('\n')]
                for row in map(json.loads, lines[seen:]):
                    if 'seconds' not in row or row['stage'].split('-')[0] not in NAMES:
                        continue
                    best.setdefault(row['stage'], []).append(row)
                    if len(best[row['stage']]) < args.steps:
                        continue
                    kind, length = row['stage'].split('-')
                    if (kind, int(length)) not in stages:
                        continue
                    fastest = min(best[row['stage']], key=lambda r: r['seconds'] / r['tokens'])
                    result = {'length': int(length), 'stage': kind, 'form': form,
                              'heads': args.heads, 'precision': args.precision,
                              'tokens': fastest['tokens'], 'seconds': fastest['seconds'],
                              'peak_mib': peak,
                              'us_per_token': 1e6 * fastest['seconds'] / fastest['tokens']}
                    yield result
                    peak = 0  # a stage gives its memory back when it ends
                seen = len(lines)
                if ended:
                    break
                time.sleep(0.05)
            if process.returncode != 0:
                out.seek(0)
                print(f'ended with {process.returncode}: {out.read().strip()[-400:]}', file=sys.stderr)


def run(args):
    if not os.access(args.tamis, os.X_OK):
        sys.exit(f'{args.tamis}: no such program; build it (cmake --preset cuda), or give --tamis')
    for kind in args.kinds:
        if kind not in NAMES:
            sys.exit(f'--kinds {kind}: want some of {", ".join(NAMES)}')
    with open(args.out, 'a', encoding='utf-8') as out:
        for form in args.forms:
            # What does not depend on the form is trained with the first of them.
            left = [(kind, length) for length in sorted(args.lengths) for kind in args.kinds
                    if KINDS.get(kind, kind) == 'sparse' or form == args.forms[0]]
            while left:
                first = left[0]
                for row in train(args, form, left):
                    left.remove((row['stage'], row['length']))
                    print(json.dumps(row), file=out, flush=True)
                    print(f"{row['length']:7d} {row['stage']:8s} {form:6s} "
                          f"{row['us_per_token']:9.2f} us a token, {row['peak_mib']} MiB", flush=True)
                # What did not fit beside what came before may fit alone.
                if left and left[0] == first:
                    print(f'{first[1]}: {first[0]} ({form}) is left out', file=sys.stderr)
                    left.pop(0)


def plot(args):
    import matplotlib  # pylint: disable=import-outside-toplevel
    matplotlib.use('svg')
    import matplotlib.pyplot as plt  # pylint: disable=import-outside-toplevel
    with open(args.results, encoding='utf-8') as lines:
        rows = [json.loads(line) for line in lines]
    matplotlib.rcParams['svg.hashsalt'] = 'tamis'  # the same bytes for the same data
    figure, axes = plt.subplots(figsize=(7, 4))
    lines = {}
    for r in rows:
        sparse = KINDS.get(r['stage'], r['stage']) == 'sparse'
        line = (r['stage'], r['heads'], r.get('form', 'auto') if sparse else '')
        lines.setdefault(line, []).append((r['length'], r['us_per_token']))
    for (stage, heads, form), points in sorted(
            lines.items(), key=lambda k: (list(STYLES).index(k[0][0]), -k[0][1], k[0][2])):
        label = f'{NAMES[stage]}, {heads} heads'
        if form not in ('', 'auto'):
            label += f', {form}'
        axes.plot(*zip(*sorted(points)), STYLES[stage], label=label)
    lengths = sorted({r['length'] for r in rows})
    axes.set_xscale('log', base=2)
    axes.set_xticks(lengths)
    axes.set_xticklabels([f'{n // 1024}K' for n in lengths])
    axes.set_xlabel('tokens of a sequence')
    axes.set_ylabel('microseconds a token, one layer')
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(title='stage')
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
    measure.add_argument('--steps', type=int, default=2)
    measure.add_argument('--kinds', default=['pretrain', 'warmup', 'sparse'],
                         type=lambda text: text.split(','),
                         help='stages to train: pretrain (dense), warmup, sparse, recompute (sparse '
                              'with that key: less memory, more work)')
    measure.add_argument('--forms', default=['auto'], type=lambda text: text.split(','),
                         help='of sparse attention: auto, gather, mask')
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
