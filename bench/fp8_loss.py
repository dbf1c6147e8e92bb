#!/usr/bin/env python3
"""How far FP8 linear layers move the loss of a training (recipes/fp8).

  bench/fp8_loss.py collect RAW   takes what of the following is in RAW, log.jsonl of runs but for the .json, into
                                  bench/results/fp8-loss
      train.toml      {bf16,fp8}.log, {bf16,fp8}.{prose,code}.json of `tamis eval perplexity --json`,
                      {bf16,fp8}-weights.{bf16,fp8}.log of a rate of 0
      by seed         scratch-{bf16,fp8}-SEED.log of train.toml, flat-{bf16,fp8}-SEED.log of flat.toml and, of its
                      weights with a rate of 0, flat-{bf16,fp8}-SEED-in-{bf16,fp8}.log and start-in-{bf16,fp8}.log
      parts           part-NAME.log of one seed, of a program that was changed to round some factors alone
  bench/fp8_loss.py page          prints the tables of docs/training.md and writes docs/fp8-loss.svg

other-runs.jsonl there, {"run": name, "losses": [...]} a line, and gradients.jsonl were put together by hand.
"""
import argparse
import json
import math
import os
import random
import re
import sys

from parity import DRAWS, ROOT, plot, read_lines, short, table, write_lines

RESULTS = os.path.join(ROOT, 'bench/results/fp8-loss')
ARMS = ('bf16', 'fp8')
BLOCK = 16  # steps that are drawn together: what parts two runs lasts longer than a batch
WINDOWS = ((1, 32), (33, 128), (129, 256), (257, 336), (337, 400), (401, 464), (465, 512))  # ends are multiples of BLOCK
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


def collect(raw):
    os.makedirs(RESULTS, exist_ok=True)
    found = [collect_long(raw), collect_seeds(raw)]
    if not any(found):
        sys.exit(f'{raw}: no log of these runs')


def sources_of(line):
    return [[s['source'].split('/')[-1], short(s['loss'])] for s in line['validation']['sources']]


def collect_seeds(raw):
    means, flat = [], []
    for name in sorted(os.listdir(raw)):
        m = re.fullmatch(r'(?:(scratch|flat)-(bf16|fp8)-(\d+)|(part)-(.+?)|(start))(?:-in-(bf16|fp8))?\.log', name)
        if not m:
            continue
        lines = read_lines(os.path.join(raw, name))
        held = [x for x in lines if 'validation' in x]
        if m[1] == 'scratch' or m[4]:
            own = means_of(lines, name)
            if BLOCK * len(own) not in (last for _, last in WINDOWS):
                sys.exit(f'{name}: {BLOCK * len(own)} steps, not to the end of one of {WINDOWS}')
            means.append({**({'part': m[5]} if m[4] else {'arm': m[2], 'seed': int(m[3])}),
                          'means': own})
        elif not held:
            sys.exit(f'{name}: no validation')
        else:
            flat.append({'weights': m[2] or 'start', 'seed': int(m[3] or 0), 'scored': m[7] or 'own',
                         'step': held[-1]['step'], 'sources': sources_of(held[-1]),
                         **({} if m[7] else {'means': means_of(lines, name)})})
    if means:
        write_lines(os.path.join(RESULTS, 'scratch.jsonl'), means)
    if flat:
        write_lines(os.path.join(RESULTS, 'flat.jsonl'), flat)
    return bool(means or flat)


def collect_long(raw):
    if not os.path.exists(os.path.join(raw, 'bf16.log')):
        return False
    logs = {arm: read_lines(os.path.join(raw, arm + '.log')) for arm in ARMS}
    losses = {arm: losses_of(lines, arm + '.log') for arm, lines in logs.items()}
    if losses['bf16'].keys() != losses['fp8'].keys():
        sys.exit(f'{raw}: bf16.log has {len(losses["bf16"])} steps, fp8.log {len(losses["fp8"])}')
    write_lines(os.path.join(RESULTS, 'steps.jsonl'),
                [[step, *(short(losses[arm][step]['loss']) for arm in ARMS)] for step in sorted(losses['bf16'])])
    totals = [{'arm': arm, 'steps': len(x), 'tokens': sum(y['tokens'] for y in x.values()),
               'seconds': short(sum(y['seconds'] for y in x.values()))} for arm, x in losses.items()]
    write_lines(os.path.join(RESULTS, 'totals.jsonl'), totals)
    held_out = [{'arm': arm, 'step': x['step'], 'sources': sources_of(x)}
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
    return True


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
    return [name, count, f'{a:.4f}', f'{b:.4f}', f'{p[0]:+.3f}' + (f' [{p[1]:+.3f}, {p[2]:+.3f}]' if math.isfinite(p[1]) else '')]


def load(name):
    return read_lines(os.path.join(RESULTS, name + '.jsonl'))


def over_seeds(values):
    """Mean, and its 95 % interval as seeds vary."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, -math.inf, math.inf
    wide = STUDENT[n - 2] * spread(values) / math.sqrt(n)
    return mean, mean - wide, mean + wide


def spread(values):
    """Standard deviation of one."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


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
            rows.append(row(f'{source}, {name}', ', '.join(f'{s}: {x:+.3f}' for s, x in zip(seeds, each)), mean(a), mean(b),
                            over_seeds(each)))
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
    """Runs of train.toml by seed beside the long pair, and what chance does to one seed."""
    runs, parts = {}, {}
    for x in load('scratch'):
        (parts if 'part' in x else runs)[x['part'] if 'part' in x else (x['seed'], x['arm'])] = x['means']
    seeds = sorted(s for s, arm in runs if arm == 'bf16' and (s, 'fp8') in runs)
    long = [p[1:] for p in load('steps')]
    long = {arm: [sum(p[i] for p in long[j:j + BLOCK]) / BLOCK for j in range(0, len(long), BLOCK)] for i, arm in enumerate(ARMS)}
    steps = BLOCK * min(len(means) for means in runs.values())
    rows = []
    for w in WINDOWS:
        if w[1] <= steps:
            at = {key: window(means, *w) for key, means in runs.items()}
            each = [100 * (at[s, 'fp8'] / at[s, 'bf16'] - 1) for s in seeds]
            level = lambda arm: math.fsum(at[s, arm] for s in seeds) / len(seeds)
            own = row(f'{w[0]} to {w[1]}', ', '.join(f'{x:+.2f}' for x in each), level('bf16'), level('fp8'), over_seeds(each))
        else:
            own = [f'{w[0]} to {w[1]}'] + 4 * ['-']
        chance = [window(means, *w) for means in parts.values()]
        mean = math.fsum(chance) / max(1, len(chance))
        rows.append([*own, f'{100 * (min(chance) / mean - 1):+.2f} to {100 * (max(chance) / mean - 1):+.2f}' if chance else '-',
                     f'{100 * (window(long["fp8"], *w) / window(long["bf16"], *w) - 1):+.2f}'])
    print(table(['steps', f'seeds {", ".join(map(str, seeds))}', 'bf16', 'fp8', 'fp8 over bf16, percent [95 %]',
                 f'{len(parts)} runs of one seed over their mean', 'the long pair'], rows))
    if parts:
        mean = [math.fsum(x) / len(parts) for x in zip(*parts.values())]
        rows = [[name, *(f'{100 * (window(means, *w) / window(mean, *w) - 1):+.2f}' for w in WINDOWS)]
                for name, means in sorted(parts.items(), key=lambda x: window(x[1], *WINDOWS[-1]))]
        print(table(['one seed, over the mean of these runs, percent', *(f'{a} to {b}' for a, b in WINDOWS)], rows))
    curve = lambda a, b: [(BLOCK * (i + 1), 100 * (y / x - 1)) for i, (x, y) in enumerate(zip(a, b))]
    plot(os.path.join(ROOT, 'docs/fp8-loss.svg'), 'Training loss with FP8 linear layers over that with bf16, from random weights',
         [('the long pair', curve(long['bf16'], long['fp8']))] + [(f'seed {s}', curve(runs[s, 'bf16'], runs[s, 'fp8'])) for s in seeds],
         'step', 'percent')


def gradients():
    rows = [[x['weights'], x['rounded'], f'{x["cosine"]:.5f}', f'{x["norm"]:.4f}'] for x in load('gradients')]
    print(table(['gradients of 65,536 tokens, weights', 'rounded', 'cosine with the exact one', 'norm over the exact one'], rows))


def long_run():
    """The run of train.toml, one seed."""
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


def page():
    flat()
    scratch()
    gradients()
    long_run()


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
