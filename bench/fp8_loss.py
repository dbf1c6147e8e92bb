#!/usr/bin/env python3
"""How far FP8 linear layers move the loss of a whole training (recipes/fp8/train.toml).

  bench/fp8_loss.py collect RAW   takes bf16.log and fp8.log (log.jsonl of two runs that differ in run.precision alone),
                                  {bf16,fp8}.{prose,code}.json of `tamis eval perplexity --json` and, of runs with a
                                  rate of 0, {bf16,fp8}-weights.{bf16,fp8}.log from RAW into bench/results/fp8-loss;
                                  other-runs.jsonl there, {"run": name, "losses": [...]} a line, was put together by hand
  bench/fp8_loss.py page          prints the table of docs/training.md and writes docs/fp8-loss.svg
"""
import argparse
import json
import math
import os
import random
import sys

from parity import DRAWS, ROOT, plot, read_lines, short, smooth, table, write_lines

RESULTS = os.path.join(ROOT, 'bench/results/fp8-loss')
ARMS = ('bf16', 'fp8')
BLOCK = 16  # steps that are drawn together: what parts two runs lasts longer than a batch


def collect(raw):
    os.makedirs(RESULTS, exist_ok=True)
    logs = {arm: read_lines(os.path.join(raw, arm + '.log')) for arm in ARMS}
    losses = {arm: {x['step']: x for x in lines if 'validation' not in x} for arm, lines in logs.items()}
    skipped = [(arm, step) for arm in ARMS for step, x in losses[arm].items() if x.get('skipped') or x['loss'] is None]
    if skipped:
        sys.exit(f'steps without a loss: {skipped}')
    if losses['bf16'].keys() != losses['fp8'].keys():
        sys.exit(f'{raw}: bf16.log has {len(losses["bf16"])} steps, fp8.log {len(losses["fp8"])}')
    write_lines(os.path.join(RESULTS, 'steps.jsonl'),
                [[step, *(short(losses[arm][step]['loss']) for arm in ARMS)] for step in sorted(losses['bf16'])])
    totals = [{'arm': arm, 'steps': len(x), 'tokens': sum(y['tokens'] for y in x.values()),
               'seconds': short(sum(y['seconds'] for y in x.values()))} for arm, x in losses.items()]
    write_lines(os.path.join(RESULTS, 'totals.jsonl'), totals)
    held_out = [{'arm': arm, 'step': x['step'], 'sources': [[s['source'].split('/')[-1], short(s['loss'])]
                                                           for s in x['validation']['sources']]}
                for arm in ARMS for x in logs[arm] if 'validation' in x]
    write_lines(os.path.join(RESULTS, 'held-out.jsonl'), held_out)
    text = []
    for arm in ARMS:
        for domain in ('prose', 'code'):
            path = os.path.join(raw, f'{arm}.{domain}.json')
            with open(path, encoding='utf-8') as f:
                chunks = json.load(f)['chunks']
            text.append({'arm': arm, 'domain': domain,
                         'chunks': [[c['tokens'], short(c['tokens'] * c['mean_nll'])] for c in chunks]})
    write_lines(os.path.join(RESULTS, 'text.jsonl'), text)
    same = []
    for weights in ARMS:
        for arm in ARMS:
            path = os.path.join(raw, f'{weights}-weights.{arm}.log')
            if os.path.exists(path):
                same.append({'weights': weights, 'arm': arm,
                             'losses': [short(x['loss']) for x in read_lines(path) if 'validation' not in x]})
    write_lines(os.path.join(RESULTS, 'same-weights.jsonl'), same)


def relative(pairs):
    """Percent by which the sum of the second numbers is above that of the first."""
    return 100 * (sum(y for _, y in pairs) / sum(x for x, _ in pairs) - 1)


def interval(pairs, block=1):
    """The difference and its 95 % interval: blocks of pairs drawn again."""
    blocks = [pairs[i:i + block] for i in range(0, len(pairs), block)]
    rng = random.Random(1)
    drawn = sorted(relative([p for b in rng.choices(blocks, k=len(blocks)) for p in b]) for _ in range(DRAWS))
    return relative(pairs), drawn[int(0.025 * DRAWS)], drawn[int(0.975 * DRAWS) - 1]


def row(name, count, a, b, p):
    return [name, count, f'{a:.4f}', f'{b:.4f}', f'{p[0]:+.3f} [{p[1]:+.3f}, {p[2]:+.3f}]']


def page():
    load = lambda name: read_lines(os.path.join(RESULTS, name + '.jsonl'))
    steps = load('steps')
    pairs = [(x, y) for _, x, y in steps]
    n, rows = len(pairs), []
    mean = lambda ps, i: sum(p[i] for p in ps) / len(ps)
    for q in range(4):
        own = pairs[n * q // 4:n * (q + 1) // 4]
        first, last = steps[n * q // 4][0], steps[n * (q + 1) // 4 - 1][0]
        rows.append(row(f'training, steps {first:,} to {last:,}', f'{len(own)} batches', mean(own, 0), mean(own, 1),
                        interval(own, BLOCK)))
    own = pairs[-100:]
    rows.append(row('training, the last 100 steps', f'{len(own)} batches', mean(own, 0), mean(own, 1), interval(own, BLOCK)))
    texts = {(t['arm'], t['domain']): t['chunks'] for t in load('text')}
    for domains in (('prose',), ('code',), ('prose', 'code')):
        a, b = ([c for d in domains for c in texts[arm, d]] for arm in ARMS)
        if [c[0] for c in a] != [c[0] for c in b]:
            sys.exit(f'{domains}: the arms have other chunks')
        own = [(x[1], y[1]) for x, y in zip(a, b)]
        tokens = sum(c[0] for c in a)
        rows.append(row(f'held-out {" and ".join(domains)} after training, both in exact precision', f'{len(own)} chunks',
                        sum(x for x, _ in own) / tokens, sum(y for _, y in own) / tokens, interval(own)))
    print(table(['loss, nats a token', '', 'bf16', 'fp8', 'fp8 over bf16, percent [95 %]'], rows))
    held = {}
    for line in load('held-out'):
        for source, loss in line['sources']:
            held.setdefault((line['step'], source), {})[line['arm']] = loss
    for (step, source), x in sorted(held.items()):
        print(f'validation {source} after step {step:,}, each in its own precision: {x["bf16"]:.4f} {x["fp8"]:.4f} '
              f'{100 * (x["fp8"] / x["bf16"] - 1):+.3f} %')
    same = {(x['weights'], x['arm']): x['losses'] for x in load('same-weights')}
    for weights in ARMS:
        if all((weights, arm) in same for arm in ARMS):
            own = list(zip(same[weights, 'bf16'], same[weights, 'fp8']))
            p = interval(own)
            each = [100 * (y / x - 1) for x, y in own]
            print(f'the {weights} run\'s weights, fp8 over bf16: {p[0]:+.3f} % [{p[1]:+.3f}, {p[2]:+.3f}], {len(own)} batches '
                  f'from {min(each):+.3f} to {max(each):+.3f}')
    for x in load('other-runs'):  # of the first steps, all over the bf16 run
        parts = ((i, min(i + 50, len(x['losses']))) for i in range(0, len(x['losses']), 50))
        print(f'{x["run"]}: ' + ', '.join(f'{i + 1}-{j} {relative(list(zip([p[0] for p in pairs[i:j]], x["losses"][i:j]))):+.2f} %'
                                         for i, j in parts))
    for x in load('totals'):
        print(f'{x["arm"]}: {x["steps"]:,} steps, {x["tokens"] / 1e6:.1f} M tokens, {x["seconds"]:.0f} s')
    points = [(s, 100 * (y / x - 1)) for s, x, y in steps]
    width = max(1, n // 30)
    smoothed = smooth(points, width)
    settled = [abs(y) for s, y in smoothed if s > 0.1 * n]
    print(f'mean of {width} steps, after the first tenth: at most {max(settled):.3f} %, {math.fsum(settled) / len(settled):.3f} % on average, '
          'without sign')
    plot(os.path.join(ROOT, 'docs/fp8-loss.svg'), 'Training loss with FP8 linear layers over that with bf16, same batches',
         [(f'mean of {width} steps', smoothed), ('0.25 %', [(smoothed[0][0], 0.25), (smoothed[-1][0], 0.25)]),
          ('-0.25 %', [(smoothed[0][0], -0.25), (smoothed[-1][0], -0.25)])], 'step', 'percent')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('what', choices=['collect', 'page'])
    p.add_argument('raw', nargs='?')
    args = p.parse_args()
    if args.what == 'collect' and not args.raw:
        p.error('collect wants the folder RAW')
    return collect(args.raw) if args.what == 'collect' else page()


if __name__ == '__main__':
    sys.exit(main())
