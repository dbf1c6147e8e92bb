#!/usr/bin/env python3
"""How far FP8 linear layers move the loss of a training (recipes/fp8).

  bench/fp8_loss.py collect RAW   takes what of the following is in RAW, log.jsonl of runs, into bench/results/fp8-loss
      train.toml      scratch-{bf16,fp8}-SEED.log, the whole of it or of its steps of a constant rate the first, and
                      scratch-{bf16,fp8}-SEED-NAME.log, the same by other kernels
      flat.toml       flat-{bf16,fp8}-SEED.log and, of its weights with a rate of 0, flat-{bf16,fp8}-SEED-in-{bf16,fp8}.log
                      and start-in-{bf16,fp8}.log
      parts           part-NAME.log of one seed, of a program that was changed to round some factors alone
  bench/fp8_loss.py page          prints the tables of docs/training.md and writes docs/fp8-loss.svg

gradients.jsonl there was put together by hand.
"""
import argparse
import json
import math
import os
import re
import sys

from parity import ROOT, plot, read_lines, short, table, write_lines

RESULTS = os.path.join(ROOT, 'bench/results/fp8-loss')
ARMS = ('bf16', 'fp8')
BLOCK = 16  # steps that are kept as their mean
WINDOWS = ((1, 32), (33, 128), (129, 256), (257, 400), (401, 512), (513, 768), (769, 1024))  # ends are multiples of BLOCK
# 97.5 % quantiles of Student's t by degrees of freedom, one fewer than seeds.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def losses_of(lines, name):
    """{step: line} of a run's log; a step without a loss is an error."""
    out = {x['step']: x for x in lines if 'validation' not in x}
    skipped = [step for step, x in out.items() if x.get('skipped') or x['loss'] is None]
    if skipped:
        sys.exit(f'{name}: steps without a loss: {skipped}')
    return out


def means_of(lines, name):
    """Training losses of a whole run, BLOCK steps together."""
    losses = losses_of(lines, name)
    n = len(losses)
    if sorted(losses) != list(range(1, n + 1)) or n % BLOCK:
        sys.exit(f'{name}: {n} steps, not whole blocks of {BLOCK} from step 1 on')
    return [short(math.fsum(losses[i + j]['loss'] for j in range(BLOCK)) / BLOCK) for i in range(1, n, BLOCK)]


def sources_of(line):
    return [[s['source'].split('/')[-1], short(s['loss'])] for s in line['validation']['sources']]


def collect(raw):
    os.makedirs(RESULTS, exist_ok=True)
    scratch, flat = [], []
    for name in sorted(os.listdir(raw)):
        m = re.fullmatch(r'(?:scratch-(bf16|fp8)-(\d+)(?:-(.+))?|part-(.+))\.log', name)
        if m:
            lines = read_lines(os.path.join(raw, name))
            own = means_of(lines, name)
            steps = BLOCK * len(own)
            if steps not in (last for _, last in WINDOWS):
                sys.exit(f'{name}: {steps} steps, not to the end of one of {WINDOWS}')
            held = [x for x in lines if 'validation' in x and x['step'] == steps]
            scratch.append({**({'part': m[4]} if m[4] else {'arm': m[1], 'seed': int(m[2])}), **({'run': m[3]} if m[3] else {}),
                            'means': own, **({'sources': sources_of(held[0])} if held else {})})
            continue
        m = re.fullmatch(r'(?:flat-(bf16|fp8)-(\d+)|start)(?:-in-(bf16|fp8))?\.log', name)
        if m:
            lines = read_lines(os.path.join(raw, name))
            held = [x for x in lines if 'validation' in x]
            if not held:
                sys.exit(f'{name}: no validation')
            flat.append({'weights': m[1] or 'start', 'seed': int(m[2] or 0), 'scored': m[3] or 'own',
                         'step': held[-1]['step'], 'sources': sources_of(held[-1]),
                         **({} if m[3] else {'means': means_of(lines, name)})})
    if not scratch and not flat:
        sys.exit(f'{raw}: no log of these runs')
    if scratch:
        write_lines(os.path.join(RESULTS, 'scratch.jsonl'), scratch)
    if flat:
        write_lines(os.path.join(RESULTS, 'flat.jsonl'), flat)


def row(name, a, b, p):
    return [name, f'{a:.4f}', f'{b:.4f}', f'{p[0]:+.3f}' + (f' [{p[1]:+.3f}, {p[2]:+.3f}]' if math.isfinite(p[1]) else '')]


def load(name):
    return read_lines(os.path.join(RESULTS, name + '.jsonl'))


def over_seeds(values):
    """Mean, and its 95 % interval as seeds vary."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, -math.inf, math.inf
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    wide = STUDENT[n - 2] * deviation / math.sqrt(n)
    return mean, mean - wide, mean + wide


def flat():
    """Runs of flat.toml: held-out text and training loss, over seeds."""
    scores = {(x['weights'], x['seed'], x['scored'], source): loss for x in load('flat') for source, loss in x['sources']}
    rows = []
    for name, a, b in (('trained in, and scored in', ('bf16', 'own'), ('fp8', 'own')),
                       ('trained in; both scored in bf16', ('bf16', 'bf16'), ('fp8', 'bf16')),
                       ('trained in; both scored in fp8', ('bf16', 'fp8'), ('fp8', 'fp8')),
                       ('scored in; both trained in bf16', ('bf16', 'bf16'), ('bf16', 'fp8'))):
        for source in ('prose', 'code'):
            at = lambda arm, seed: scores.get((arm[0], seed, arm[1], source + '-held-out'))
            seeds = sorted({k[1] for k in scores if k[1] and at(a, k[1]) and at(b, k[1])})
            if not seeds:
                continue
            each = [100 * (at(b, s) / at(a, s) - 1) for s in seeds]
            mean = lambda arm: sum(at(arm, s) for s in seeds) / len(seeds)
            own = row(f'{source}, {name}', mean(a), mean(b), over_seeds(each))
            rows.append([own[0], ', '.join(f'{s}: {x:+.3f}' for s, x in zip(seeds, each)), *own[1:]])
    print(table(['held-out text after flat.toml', 'seed: percent', 'first', 'second', 'second over first, percent [95 %]'], rows))
    means = {(x['weights'], x['seed']): x['means'] for x in load('flat') if 'means' in x}
    for seed in sorted(s for arm, s in means if arm == 'fp8'):
        n = len(means['fp8', seed])
        print(f'training of seed {seed}, fp8 over bf16, percent: ' + ', '.join(
            f'{BLOCK * i + 1} to {BLOCK * (i + 4)} {100 * (sum(means["fp8", seed][i:i + 4]) / sum(means["bf16", seed][i:i + 4]) - 1):+.2f}'
            for i in range(0, n, 4)))
    for (weights, _, scored, source), loss in sorted(scores.items()):
        if weights == 'start':
            print(f'{source} before, scored in {scored}: {loss:.4f}')


def window(means, first, last):
    own = means[(first - 1) // BLOCK:last // BLOCK]
    return math.fsum(own) / len(own)


def scratch():
    """Runs of train.toml by seed, and what chance does to one seed."""
    runs, held, others, parts = {}, {}, {}, {}
    for x in load('scratch'):
        if 'part' in x:
            parts[x['part']] = x['means']
        elif 'run' in x:
            others[x['seed'], f'{x["arm"]}, {x["run"]}'] = x['means']
        else:
            runs[x['seed'], x['arm']] = x['means']
            for source, loss in x.get('sources', ()):
                held.setdefault((BLOCK * len(x['means']), source), {})[x['seed'], x['arm']] = loss
    seeds = sorted(s for s, arm in runs if arm == 'bf16' and (s, 'fp8') in runs)
    above = lambda y, x: 100 * (y / x - 1)

    def compared(name, at, chance=()):
        each = {s: above(at[s, 'fp8'], at[s, 'bf16']) for s in seeds if (s, 'fp8') in at and (s, 'bf16') in at}
        level = lambda arm: math.fsum(at[s, arm] for s in each) / len(each)
        own = row(name, level('bf16'), level('fp8'), over_seeds(list(each.values())))
        mean = math.fsum(chance) / max(1, len(chance))
        return [own[0], *(f'{each[s]:+.2f}' if s in each else '' for s in seeds), *own[1:],
                f'{above(min(chance), mean):+.2f} to {above(max(chance), mean):+.2f}' if chance else '']

    longest = BLOCK * max((min(len(runs[s, arm]) for arm in ARMS) for s in seeds), default=0)
    rows = [compared(f'{a:,} to {b:,}', {key: window(x, a, b) for key, x in runs.items() if BLOCK * len(x) >= b},
                     [window(x, a, b) for x in parts.values() if BLOCK * len(x) >= b]) for a, b in WINDOWS if b <= longest]
    rows += [compared(f'{source} after {step:,}', at) for (step, source), at in sorted(held.items())]
    print(table(['steps', *(f'seed {s}' for s in seeds), 'bf16', 'fp8', 'fp8 over bf16, percent [95 %]',
                 f'{len(parts)} runs of one seed over their mean'], rows))
    shown = lambda means, base: [f'{above(window(means, *w), window(base, *w)):+.2f}' if BLOCK * min(len(means), len(base)) >= w[1]
                                 else '' for w in WINDOWS]
    head = [f'{a:,} to {b:,}' for a, b in WINDOWS]
    again = {(s, 'fp8'): runs[s, 'fp8'] for s, _ in others if s in seeds} | others
    rows = [[f'seed {s}: {name}', *shown(means, runs[s, 'bf16'])] for (s, name), means in sorted(again.items())]
    print(table(['over the bf16 run of that seed, percent', *head], rows))
    if parts:
        mean = [math.fsum(x) / len(parts) for x in zip(*parts.values(), strict=True)]
        last = max(w for w in WINDOWS if w[1] <= BLOCK * len(mean))
        rows = [[name, *shown(means, mean)] for name, means in sorted(parts.items(), key=lambda x: window(x[1], *last))]
        print(table(['one seed, over the mean of these runs, percent', *head], rows))
    plot(os.path.join(ROOT, 'docs/fp8-loss.svg'), 'Training loss with FP8 linear layers over that with bf16, from random weights',
         [(f'seed {s}', [(BLOCK * (i + 1), above(y, x)) for i, (x, y) in enumerate(zip(runs[s, 'bf16'], runs[s, 'fp8']))])
          for s in seeds], 'step', 'percent')


def gradients():
    rows = [[x['weights'], x['rounded'], f'{x["cosine"]:.5f}', f'{x["norm"]:.4f}'] for x in load('gradients')]
    print(table(['gradients of 65,536 tokens, weights', 'rounded', 'cosine with the exact one', 'norm over the exact one'], rows))


def page():
    flat()
    scratch()
    gradients()


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
