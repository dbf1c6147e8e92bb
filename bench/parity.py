#!/usr/bin/env python3
"""docs/parity*.md from the numbers of the runs.

  bench/parity.py collect RAW EXPERIMENT   takes what recipes/parity/run left in RAW into
                                           bench/results/parity/EXPERIMENT
  bench/parity.py page                     writes the page and the plots of each experiment there

bench/results/parity/EXPERIMENT/run.json, written by hand, says what was run and how to read it. RAW has
a folder seed-N for each run with logs of its trainings (*.log), and MODEL.ATTENTION.K.exercises.jsonl and
MODEL.ATTENTION.K.{prose,code}.json from `tamis eval`.
"""
import argparse
import gzip
import json
import math
import os
import random
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = os.path.join(ROOT, 'bench/results/parity')
DRAWS = 2000
FLOOR = 5    # percent: cells below were not learned and say nothing


def read_lines(path):
    with (gzip.open if path.endswith('.gz') else open)(path, 'rt', encoding='utf-8') as f:
        return [json.loads(line) for line in f if line.strip()]


def write_lines(path, lines):
    data = ''.join(json.dumps(line, separators=(',', ':')) + '\n' for line in lines).encode()
    with open(path, 'wb') as f:
        f.write(gzip.compress(data, mtime=0) if path.endswith('.gz') else data)


class Settings:
    """Of an experiment, from its run.json: `page`, the name of its files in docs; `k` of the arms; `longest`,
    tokens of a sequence; `base`, the stages before the arms, the last one of dense training and the warm-up
    at their end; `sweep`. `title`, `what`, `not_run`, `reading` and `again` are text of the page; `sections` are
    experiments whose table stands on this page too, with `short_title` and `summary` of theirs."""

    def __init__(self, folder):
        self.folder = folder
        with open(os.path.join(folder, 'run.json'), encoding='utf-8') as f:
            self.run = json.load(f)
        for key in ('page', 'k', 'longest', 'base', 'sweep', 'title'):
            setattr(self, key, self.run[key])
        self.late = self.longest // 2  # tokens of context from which text counts as far into it
        k, whole = self.k, self.longest
        self.conditions = [  # name, (model, attention, k)
            ('before the arms, dense', (self.base[-2], 'dense', 0)),
            ('dense-continued', ('dense', 'dense', 0)),
            ('sparse-continued', ('sparse', 'sparse', k)),
            ('the same weights, dense attention', ('sparse', 'dense', 0)),
            (f'the same weights, k = {whole:,}', ('sparse', 'sparse', whole)),
            ('warm-up only, then sparse', ('warmup', 'sparse', k)),
            ('oracle: the heads\' mean picks', ('sparse', 'oracle', k)),
            ('last-k window', ('sparse', 'window', k)),
            ('random positions', ('sparse', 'random', k)),
        ]


# ---- collect


def short(value):
    return float(f'{value:.6g}') if isinstance(value, float) else value


def log_line(seed, arm, line, every):
    """A step or a validation as the page needs it; None for a step that it does not."""
    out = {'seed': seed, 'arm': arm, 'stage': line['stage'], 'step': line['step']}
    if 'validation' in line:
        v = line['validation']
        out['sources'] = [[s['source'].split('/')[-1], short(s['loss']), short(s['accuracy'])] for s in v['sources']]
        for key in ('recall', 'mass', 'worst_mass', 'window'):
            values = [h[key] for h in v.get('indexer', []) if h.get(key) is not None]
            if values:
                out['indexer_' + key] = [round(x, 4) for x in values]
        return out
    if line['stage_step'] % every and line['stage_step'] != 1 and not line.get('skipped'):
        return None
    if line['loss'] is not None:
        out['loss'] = short(line['loss'])
    kl = line.get('kl') or []
    if kl:
        out['kl'] = short(sum(kl) / len(kl))
    if line.get('skipped'):
        out['skipped'] = True
    return out


def collect(raw, settings):
    steps, exercises, text, totals = [], [], [], []
    for name in sorted(os.listdir(raw)):
        found = re.fullmatch(r'seed-(\d+)', name)
        if not found:
            continue
        seed = int(found.group(1))
        folder = os.path.join(raw, name)
        for file in sorted(os.listdir(folder)):
            path = os.path.join(folder, file)
            parts = file.split('.')
            if len(parts) == 2 and parts[1] == 'log':
                lines = read_lines(path)
                for line in lines:
                    arm = line['stage'] if line['stage'] in ('sparse', 'dense') else 'base'
                    steps.append(log_line(seed, arm, line, 1 if arm != 'base' else 10))
                stages = {}
                for line in lines:
                    if 'validation' in line:
                        continue
                    t = stages.setdefault(line['stage'], [0, 0, 0.0, 0.0])
                    t[0] += 1
                    t[1] += line['tokens']
                    t[2] += line['seconds']
                    t[3] += line.get('flops', 0)
                for stage, (count, tokens, seconds, flops) in stages.items():
                    totals.append({'seed': seed, 'stage': stage, 'steps': count, 'tokens': tokens,
                                   'seconds': short(seconds), 'flops': short(flops)})
            elif file.endswith('.exercises.jsonl'):
                for line in read_lines(path):
                    keep = ('task', 'context', 'answers', 'right', 'answer_tokens', 'right_tokens', 'sequences',
                            'stood_before', 'beyond_topk', 'results', 'precision')
                    exercises.append({'seed': seed, 'model': parts[0], 'attention': parts[1], 'k': int(parts[2]),
                                      **{k: line[k] for k in keep}})
            elif parts[-1] == 'json' and len(parts) == 5:
                r = json.load(open(path, encoding='utf-8'))
                chunks = []
                for c in r['chunks']:
                    all_, late = [0, 0.0, 0], [0, 0.0, 0]
                    for where, (n, loss, size) in c['by_position'].items():
                        for sums in (all_, late) if int(where.split('-')[0]) >= settings.late else (all_,):
                            sums[0] += n
                            sums[1] += loss
                            sums[2] += size
                    chunks.append([short(x) for x in all_ + late])
                text.append({'seed': seed, 'model': parts[0], 'attention': parts[1], 'k': int(parts[2]),
                             'domain': parts[3], 'chunks': chunks})
    if not exercises:
        sys.exit(f'{raw}: no seed-N folder with results of tamis eval')
    for name, lines in (('steps', filter(None, steps)), ('totals', totals), ('exercises', exercises), ('text', text)):
        write_lines(os.path.join(settings.folder, name + '.jsonl.gz'), lines)


# ---- statistics


class Cells:
    """Units that are drawn again: sequences of exercises, chunks of text; by seed of the run."""

    def __init__(self, exercises, text):
        self.exercises, self.text, self.drawn = {}, {}, {}
        for e in exercises:
            words = e['results'].split(' ')
            self.exercises[(e['model'], e['attention'], e['k'], e['task'], e['context'], e['seed'])] = (
                [len(w) for w in words], [w.count('1') for w in words])
        for t in text:
            self.text[(t['model'], t['attention'], t['k'], t['domain'], t['seed'])] = t['chunks']

    def units(self, condition, row, seed):
        """[(numerator, denominator)], or None if this was not run."""
        if row[0] == 'text':
            chunks = self.text.get((*condition, row[1], seed))
            if chunks is None:
                return None
            at = 3 if row[2] else 0
            return [(c[at + 1] / math.log(2), c[at + 2]) for c in chunks if c[at + 2]]
        out = []
        for context in row[2]:
            found = self.exercises.get((*condition, row[1], context, seed))
            if found is None:
                return None
            out += [(100 * r, n) for n, r in zip(*found)]
        return out


def mean(units):
    return sum(u[0] for u in units) / max(1e-300, sum(u[1] for u in units))


def value(cells, condition, row, seeds):
    values = [mean(u) for u in (cells.units(condition, row, s) for s in seeds) if u]
    return sum(values) / len(values) if values else None


def average(cells, condition, rows, seeds):
    values = [value(cells, condition, row, seeds) for row in rows]
    return None if not values or None in values else sum(values) / len(values)


def paired(cells, a, b, rows, seeds, relative=False, draws=DRAWS):
    """Mean over rows of b - a, over seeds, and its 95 % interval: seeds drawn again, in each of them the
    sequences of each row, the same for both arms."""
    data = {}
    for s in seeds:
        for i, row in enumerate(rows):
            x, y = cells.units(a, row, s), cells.units(b, row, s)
            if not x or not y:
                return None
            if len(x) != len(y):
                sys.exit(f'{row}: arms have {len(x)} and {len(y)} sequences')
            data[s, i] = [(p[0], p[1], q[0], q[1]) for p, q in zip(x, y)]

    def difference(units):
        x = sum(u[0] for u in units) / max(1e-300, sum(u[1] for u in units))
        y = sum(u[2] for u in units) / max(1e-300, sum(u[3] for u in units))
        return 100 * (y / x - 1) if relative else y - x

    point = sum(difference(data[s, i]) for s in seeds for i in range(len(rows))) / (len(seeds) * len(rows))
    # Draws within a seed and row first, so that seeds can be drawn from them.
    pool = {}
    for (s, i), units in data.items():
        key = (a, b, str(rows[i]), s, relative)
        if key not in cells.drawn:
            rng = random.Random(str(key))
            cells.drawn[key] = [difference(rng.choices(units, k=len(units))) for _ in range(draws)]
        pool[s, i] = cells.drawn[key]
    rng, drawn = random.Random(1), []
    for d in range(draws):
        total = 0.0
        for s in rng.choices(seeds, k=len(seeds)):
            total += sum(pool[s, i][rng.randrange(draws)] for i in range(len(rows)))
        drawn.append(total / (len(seeds) * len(rows)))
    drawn.sort()
    return point, drawn[int(0.025 * draws)], drawn[int(0.975 * draws) - 1]


# ---- plots

COLOURS = ['#1f77b4', '#d62728', '#2ca02c', '#9467bd', '#8c564b', '#e377c2']


def nice_ticks(low, high, count=5):
    span = high - low or 1
    step = 10 ** math.floor(math.log10(span / count))
    for m in (1, 2, 5, 10):
        if span / (step * m) <= count:
            step *= m
            break
    first = math.ceil(low / step) * step
    return [first + i * step for i in range(int((high - first) / step + 1e-9) + 1)]


def plot(path, title, series, x_name, y_name, log_x=False):
    """series: [(name, [(x, y)])]"""
    series = [(n, [(math.log2(x) if log_x else x, y) for x, y in pts]) for n, pts in series if pts]
    if not series:
        return False
    w, h, left, bottom, top, right = 800, 340, 62, 46, 34, 230
    xs = [x for _, pts in series for x, _ in pts]
    ys = [y for _, pts in series for _, y in pts]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    pad = 0.05 * (y1 - y0 or 1)
    y0, y1 = y0 - pad, y1 + pad
    x1 = x1 if x1 > x0 else x0 + 1
    px = lambda x: left + (x - x0) / (x1 - x0) * (w - left - right)
    py = lambda y: h - bottom - (y - y0) / (y1 - y0) * (h - top - bottom)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" font-family="sans-serif" font-size="12">',
           f'<rect width="{w}" height="{h}" fill="white"/>', f'<text x="{left}" y="20" font-size="14">{title}</text>']
    for y in nice_ticks(y0, y1):
        out.append(f'<path d="M{left} {py(y):.1f}H{w - right}" stroke="#ddd"/>'
                   f'<text x="{left - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{y:.6g}</text>')
    ticks = sorted(set(xs)) if log_x else nice_ticks(x0, x1)
    for x in ticks:
        name = f'{2 ** x:.0f}' if log_x else f'{x:.6g}'
        out.append(f'<text x="{px(x):.1f}" y="{h - bottom + 18}" text-anchor="middle">{name}</text>')
    out.append(f'<path d="M{left} {top}V{h - bottom}H{w - right}" fill="none" stroke="#333"/>')
    out.append(f'<text x="{(left + w - right) / 2}" y="{h - 8}" text-anchor="middle">{x_name}</text>')
    out.append(f'<text transform="translate(14 {(h - bottom + top) / 2}) rotate(-90)" text-anchor="middle">{y_name}</text>')
    for i, (name, pts) in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        line = ' '.join(f'{px(x):.1f},{py(y):.1f}' for x, y in pts)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if len(pts) < 30:
            out += [f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.5" fill="{colour}"/>' for x, y in pts]
        out.append(f'<path d="M{w - right + 10} {top + 14 + 20 * i}h18" stroke="{colour}" stroke-width="2"/>'
                   f'<text x="{w - right + 34}" y="{top + 18 + 20 * i}">{name}</text>')
    out.append('</svg>\n')
    with open(path, 'w', encoding='utf-8') as f:
        f.write('\n'.join(out))
    return True


# ---- the page

GROUPS = [('Search', ('recall', 'needle')), ('Code', ('copy', 'induction')), ('Agent', ('variables',)),
          ('Math', ('arithmetic',))]


def task_name(task):
    kind, _, rest = task.partition(':')
    s = dict(part.split('=') for part in rest.split(',') if part)
    if kind == 'recall':
        return 'recall, ' + (f'{s["keys"]} keys' if int(s.get('keys', 0)) else 'as many keys as fit')
    if kind == 'needle':
        keys, values = int(s.get('keys', 1)), int(s.get('values', 1))
        return 'needle, ' + ('single' if keys == 1 else f'{keys} keys') + (f' of {values} values' if values > 1 else '')
    if kind == 'variables':
        hops = int(s.get('hops', 2))
        return f'variables, {hops} hop' + ('s' if hops > 1 else '')
    if kind in ('copy', 'induction'):
        return f'{kind}, up to {s.get("words", 16)} words'
    return 'sums with their working, shorter than k'


def group_of(task):
    return next(name for name, kinds in GROUPS if task.split(':')[0] in kinds)


def percent(x, digits=2):
    return '-' if x is None else f'{x:.{digits}f}'


def interval(p, unit=''):
    return '-' if p is None else f'{p[0]:+.2f}{unit} [{p[1]:+.2f}, {p[2]:+.2f}]'


def table(head, rows):
    lines = ['| ' + ' | '.join(head) + ' |', '|' + ' --- |' * len(head)]
    return '\n'.join(lines + ['| ' + ' | '.join(r) + ' |' for r in rows]) + '\n'


def smooth(points, width):
    return [(points[i][0], sum(y for _, y in points[i - width + 1:i + 1]) / width)
            for i in range(width - 1, len(points), max(1, width // 4))]


def mean_by_step(steps, seeds, arm, stage, key):
    by = {}
    for s in steps:
        if s['arm'] == arm and s['stage'] in stage and key in s and s['seed'] in seeds:
            by.setdefault(s['step'], []).append(s[key])
    return [(x, sum(y) / len(y)) for x, y in sorted(by.items()) if len(y) == len(seeds)]


class Page:
    def __init__(self, settings):
        self.s = settings
        self.base, self.dense, self.sparse = (c[1] for c in settings.conditions[:3])
        load = lambda name: read_lines(os.path.join(settings.folder, name))
        self.steps, self.totals = load('steps.jsonl.gz'), load('totals.jsonl.gz')
        exercises, text = load('exercises.jsonl.gz'), load('text.jsonl.gz')
        self.exercises = exercises
        self.cells, self.cut = Cells(exercises, text), {}
        self.run = settings.run
        with open(os.path.join(RESULTS, 'sources.json'), encoding='utf-8') as f:
            self.sources = json.load(f)
        has = lambda c: {s for m, a, k, _, _, s in self.cells.exercises if (m, a, k) == c}
        self.seeds = sorted(has(self.dense) & has(self.sparse))
        if not self.seeds:
            sys.exit('no seed has both arms')
        arms = (self.dense, self.sparse)
        cells = sorted({(t, c) for m, a, k, t, c, s in self.cells.exercises if (m, a, k) in arms},
                       key=lambda x: ([g for g, _ in GROUPS].index(group_of(x[0])), x[0], x[1]))
        self.rows = [('task', t, [c]) for t, c in cells
                     if all(self.cells.units(a, ('task', t, [c]), s) for a in arms for s in self.seeds)]
        self.domains = sorted({d for _, _, _, d, _ in self.cells.text
                               if all((*a, d, s) in self.cells.text for a in arms for s in self.seeds)}, reverse=True)

    # -- losses of the logs

    def held_out(self):
        """Rows of the last validation of both arms: the same windows of held-out text."""
        last = {}
        for s in self.steps:
            if 'sources' in s and s['arm'] in ('dense', 'sparse') and s['seed'] in self.seeds:
                last[s['arm'], s['seed']] = {x[0]: x[1] for x in s['sources']}
        out = []
        for source, group in (('prose-held-out', 'General'), ('code-held-out', 'Code')):
            pairs = [(last['dense', s][source], last['sparse', s][source]) for s in self.seeds
                     if ('dense', s) in last and ('sparse', s) in last]
            if len(pairs) != len(self.seeds):
                continue
            a, b = (sum(p[i] for p in pairs) / len(pairs) for i in (0, 1))
            each = ', '.join(f'{100 * (y / x - 1):+.2f}' for x, y in pairs)
            out.append([group, f'{source.split("-")[0]}, held out, windows of {self.s.longest:,} tokens: nats a token', f'{a:.4f}', f'{b:.4f}',
                        f'{100 * (b / a - 1):+.2f} % (seeds {each})'])
        return out

    def last_steps(self, count=50):
        """Both arms' loss on the same batch before they learn from it: the last steps, paired by step and seed."""
        losses = {(s['arm'], s['seed'], s['step']): s['loss'] for s in self.steps
                  if s['arm'] in ('dense', 'sparse') and 'loss' in s}
        steps = sorted({k[2] for k in losses})[-count:]
        pairs = {s: [(losses['dense', s, t], losses['sparse', s, t]) for t in steps] for s in self.seeds}
        ratio = lambda ps: 100 * (sum(y for _, y in ps) / sum(x for x, _ in ps) - 1)
        rng, drawn = random.Random(1), []
        for _ in range(DRAWS):
            drawn.append(sum(ratio(rng.choices(pairs[s], k=count)) for s in rng.choices(self.seeds, k=len(self.seeds)))
                         / len(self.seeds))
        drawn.sort()
        point = sum(ratio(pairs[s]) for s in self.seeds) / len(self.seeds)
        p = point, drawn[int(0.025 * DRAWS)], drawn[int(0.975 * DRAWS) - 1]
        a, b = (sum(x[i] for s in self.seeds for x in pairs[s]) / (count * len(self.seeds)) for i in (0, 1))
        return ['General', f'all of the mixture, loss of the last {count} batches: nats a token', f'{a:.4f}', f'{b:.4f}',
                interval(p, ' %')], p

    # -- the table of the report's form

    def main_table(self):
        out = [self.last_steps()[0], *self.held_out()]
        for domain in self.domains:
            group = 'Code' if domain == 'code' else 'General'
            for late in (False, True):
                row = ('text', domain, late)
                a, b = (value(self.cells, c, row, self.seeds) for c in (self.dense, self.sparse))
                if a is None or b is None:  # no text is that long
                    continue
                name = f'{domain}, bits per byte' + (f', after {self.s.late:,} tokens' if late else '')
                p = paired(self.cells, self.dense, self.sparse, [row], self.seeds, relative=True)
                out.append([group, name, percent(a, 4), percent(b, 4), interval(p, ' %')])
        for row in self.rows:
            a, b = (value(self.cells, c, row, self.seeds) for c in (self.dense, self.sparse))
            n = sum(len(self.words(self.sparse, row, s)) for s in self.seeds)
            name = f'{task_name(row[1])}, {row[2][0]:,} tokens ({n:,} answers)'
            out.append([group_of(row[1]), name, percent(a), percent(b),
                        interval(paired(self.cells, self.dense, self.sparse, [row], self.seeds))])
        order = ['General'] + [g for g, _ in GROUPS]
        out.sort(key=lambda r: order.index(r[0]))
        return table(['', 'Benchmark (exact match, percent, unless said)', 'dense-continued', 'sparse-continued',
                      'difference, 95 %'], out)

    def words(self, condition, row, seed):
        found = self.cells.exercises[(*condition, row[1], row[2][0], seed)]
        return [1] * sum(found[0])

    def accuracy(self):
        rows = [r for r in self.rows if group_of(r[1]) != 'Math']
        a, b = (average(self.cells, c, self.rows, self.seeds) for c in (self.dense, self.sparse))
        return a, b, paired(self.cells, self.dense, self.sparse, self.rows, self.seeds), rows

    # -- controls

    def control_cells(self):
        """The cells that every condition that was run has, and the sequences that all have."""
        conditions = [c for _, c in self.s.conditions if any(k[:3] == c for k in self.cells.exercises)]
        rows = [r for r in self.rows
                if all(self.cells.units(c, r, s) for c in conditions for s in self.seeds_of(c))]
        return conditions, rows

    def seeds_of(self, condition):
        return [s for s in self.seeds if any(k[:3] == condition and k[5] == s for k in self.cells.exercises)]

    def limited(self, conditions, rows):
        """Cells with as many sequences for each condition as the one with the fewest has."""
        key = (tuple(conditions), str(rows))
        if key in self.cut:
            return self.cut[key]
        cut = self.cut[key] = Cells([], [])
        for domain in self.domains:
            for s in self.seeds:
                keys = [(*c, domain, s) for c in conditions if (*c, domain, s) in self.cells.text]
                n = min((len(self.cells.text[k]) for k in keys), default=0)
                cut.text.update({k: self.cells.text[k][:n] for k in keys})
        for row in rows:
            for s in self.seeds:
                keys = [(*c, row[1], row[2][0], s) for c in conditions]
                keys = [k for k in keys if k in self.cells.exercises]
                n = min(len(self.cells.exercises[k][0]) for k in keys)
                for k in keys:
                    cut.exercises[k] = tuple(x[:n] for x in self.cells.exercises[k])
        return cut

    def control_table(self, conditions, names, rows):
        cut = self.limited(conditions, rows)
        out = []
        for name, c in zip(names, conditions):
            seeds = self.seeds_of(c)
            line = [name]
            for group, _ in GROUPS:
                own = [r for r in rows if group_of(r[1]) == group]
                line.append(percent(average(cut, c, own, seeds)))
            line.append(percent(average(cut, c, rows, seeds)))
            for domain in self.domains:
                line.append(percent(value(cut, c, ('text', domain, False), seeds), 4))
            line.append(str(len(seeds)))
            out.append(line)
        return out

    def plots(self):
        folder, made = os.path.join(ROOT, 'docs'), []
        def draw(name, *a):
            if plot(os.path.join(folder, f'{self.s.page}-{name}.svg'), *a):
                made.append(name)

        arms = [(n, mean_by_step(self.steps, self.seeds, arm, (arm,), 'loss'))
                for n, arm in (('dense-continued', 'dense'), ('sparse-continued', 'sparse'))]
        width = max(1, len(arms[0][1]) // 12)
        draw('loss', 'Training loss of both arms on the same batches', [(n, smooth(p, width)) for n, p in arms],
             'step of the run', 'nats a token')
        a, b = dict(arms[0][1]), dict(arms[1][1])
        both = [(x, 100 * (b[x] / a[x] - 1)) for x in sorted(a) if x in b]
        draw('difference', 'Loss of the sparse arm over the dense one on the same batch',
             [('each step', both), ('smoothed', smooth(both, width))], 'step of the run', 'percent')
        base = mean_by_step(self.steps, self.seeds, 'base', self.s.base[:-1], 'loss')
        draw('base', 'Training loss before the arms', [('loss', smooth(base, 5))], 'step of the run', 'nats a token')
        kl = [('warm-up: every earlier token', mean_by_step(self.steps, self.seeds, 'base', ('warmup',), 'kl')),
              ('sparse: the selected', smooth(mean_by_step(self.steps, self.seeds, 'sparse', ('sparse',), 'kl'), width))]
        draw('kl', 'KL of the indexer, mean over layers', kl, 'step of the run', 'nats a token')
        health = []
        for key, name in (('indexer_recall', 'recall of the best k'), ('indexer_mass', 'attention kept'),
                          ('indexer_worst_mass', '.. in the worst head'), ('indexer_window', 'within the last k')):
            for s in self.steps:
                if key in s and isinstance(s[key], list):
                    s[key + '_mean'] = sum(s[key]) / len(s[key])
            points = [p for arm, stage in (('base', ('warmup',)), ('sparse', ('sparse',)))
                      for p in mean_by_step(self.steps, self.seeds, arm, stage, key + '_mean')]
            health.append((name, points if len(points) > 1 else []))  # one measurement is no curve
        draw('indexer', f'What the indexer\'s {self.s.k} keep, mean over layers', health, 'step of the run', 'share')
        return made

    def acceptance(self, control):
        """Sentences of section 10.5: which of the marks hold, with the numbers."""
        a, b, p, _ = self.accuracy()
        lines = [f'Mean accuracy over the {len(self.rows)} cells: {a:.2f} % dense, {b:.2f} % sparse, difference '
                 f'{interval(p)} points: ' + ('within' if p[1] >= -1 else 'not shown to be within') + ' 1 point.']
        learned = [r for r in self.rows if value(self.cells, self.dense, r, self.seeds) >= FLOOR]
        if learned:
            q = paired(self.cells, self.dense, self.sparse, learned, self.seeds)
            lines.append(f'Over the {len(learned)} of them where the dense arm answers at least {FLOOR} %: {interval(q)} '
                         'points: ' + ('within' if q[1] >= -1 else 'not shown to be within') + ' 1 point.')
        q = self.last_steps()[1]
        lines.append(f'Loss of the last batches: {interval(q, " %")}: ' +
                     ('within' if q[2] <= 0.5 else 'not shown to be within') + ' 0.5 %.')
        texts = [(d, [('text', d, False)]) for d in self.domains]
        if len(texts) > 1:
            texts.append(('mean of both', [r for _, rows in texts for r in rows]))
        for name, rows in texts:
            q = paired(self.cells, self.dense, self.sparse, rows, self.seeds, relative=True)
            lines.append(f'Bits per byte, {name}: {interval(q, " %")}: ' +
                         ('within' if q[2] <= 0.5 else 'not shown to be within') + ' 0.5 %.')
        worst = min(((value(self.cells, self.sparse, r, self.seeds) - value(self.cells, self.dense, r, self.seeds), r)
                     for r in self.rows), key=lambda x: x[0])
        lines.append(f'The row that loses most: {task_name(worst[1][1])} at {worst[1][2][0]:,} tokens, '
                     f'{worst[0]:+.2f} points.')
        for name, condition in self.s.conditions[5:]:
            if condition not in control[0]:
                continue
            rows = [r for r in control[1] if group_of(r[1]) == 'Search']
            cut = self.limited(control[0], control[1])
            seeds = self.seeds_of(condition)
            lines.append(f'Search, {name}: {interval(paired(cut, self.sparse, condition, rows, seeds))} points against '
                         'sparse-continued.')
        whole, dense = ({k[3:]: c for k, c in self.cells.exercises.items() if k[:3] == condition}
                        for condition in (('sparse', 'sparse', self.s.longest), ('sparse', 'dense', 0)))
        words = {(e['model'], e['attention'], e['k'], e['task'], e['context'], e['seed']): e['results']
                 for e in self.exercises}
        both = [(words[('sparse', 'sparse', self.s.longest) + k], words[('sparse', 'dense', 0) + k]) for k in whole if k in dense]
        if both:
            lines.append(f'The sparse arm with k = {self.s.longest:,} against dense attention on the same weights: '
                         f'{sum(x != y for a, b in both for x, y in zip(a, b)):,} of '
                         f'{sum(len(a.replace(" ", "")) for a, _ in both):,} answers differ.')
        far = [(e['beyond_topk'], e['stood_before']) for e in self.exercises
               if (e['model'], e['attention'], e['k']) == self.sparse and group_of(e['task']) == 'Search']
        lines.append(f'Of the answers of Search whose text stood before, {100 * sum(x for x, _ in far) / max(1, sum(y for _, y in far)):.0f} % '
                     f'stood last more than {self.s.k} positions back.')
        return lines

    def drift(self, control):
        rows = control[1]
        if self.base not in control[0]:
            return ''
        cut = self.limited(control[0], rows)
        d = paired(cut, self.base, self.dense, rows, self.seeds_of(self.base))
        s = paired(cut, self.dense, self.sparse, rows, self.seeds)
        return (f'Drift (dense-continued against the model before the arms) {interval(d)} points, sparsity '
                f'(sparse against dense) {interval(s)} points, on the cells of this table.\n')

    def totals_table(self):
        by = {}
        for t in self.totals:
            if t['seed'] in self.seeds:
                by.setdefault(t['stage'], []).append(t)
        order = [*self.s.base, 'dense', 'sparse']
        out = []
        for stage, ts in sorted(by.items(), key=lambda x: order.index(x[0]) if x[0] in order else 9):
            tokens, seconds = ts[0]['tokens'], sum(t['seconds'] for t in ts) / len(ts)
            out.append([stage, f"{ts[0]['steps']:,}", f'{tokens / 1e6:.1f}M', f'{seconds:.0f}', f'{tokens / seconds:,.0f}'])
        return table(['stage', 'steps', 'tokens of a seed', 'seconds, mean', 'tokens/s'], out)

    def sweep(self):
        conditions = [('sparse', 'sparse', k) for k in self.s.sweep]
        conditions = [c for c in conditions if self.seeds_of(c)]
        rows = [r for r in self.rows if all(self.cells.units(c, r, s) for c in conditions for s in self.seeds_of(c))]
        if len(conditions) < 2 or not rows:
            return ''
        names = [f'{k[2]:,}' for k in conditions]
        cut = self.limited(conditions, rows)
        series = []
        for group, _ in GROUPS:
            own = [r for r in rows if group_of(r[1]) == group]
            if own:
                series.append((group, [(c[2], average(cut, c, own, self.seeds_of(c))) for c in conditions]))
        plot(os.path.join(ROOT, f'docs/{self.s.page}-topk.svg'), 'Exact match of the sparse arm against top-k', series,
             'k (positions selected)', 'percent', log_x=True)
        return (f'![top-k sweep]({self.s.page}-topk.svg)\n\n' +
                table(['k', *(g for g, _ in GROUPS), 'all', *(f'{d}, bpb' for d in self.domains), 'seeds'],
                      self.control_table(conditions, names, rows)))

    def table_head(self):
        drawn = 'the sequences (chunks of text), the same for both arms'
        if len(self.seeds) > 1:
            of, drawn = 'Mean of seeds ' + ', '.join(map(str, self.seeds)), f'seeds, and in each of them {drawn}'
        else:
            of, drawn = f'Seed {self.seeds[0]}', f'{drawn}. It knows nothing of other seeds'
        return (f'Form of the V3.2-Exp report\'s Table 1. {of}. The interval is a paired bootstrap, {DRAWS:,} draws: '
                f'{drawn}. Losses: relative, lower is better.\n')

    def section(self):
        """What another page says of this experiment."""
        return [f'## {self.run["short_title"]}\n', *[x + '\n' for x in self.run['summary']], self.totals_table(), self.table_head(),
                self.main_table(), *['- ' + x for x in self.acceptance(self.control_cells())], '',
                f'Controls, curves and the sweep of it: [{self.s.page}.md]({self.s.page}.md).\n']

    def write(self):
        made = self.plots()
        control = self.control_cells()
        names = [n for n, c in self.s.conditions if c in control[0]]
        cells = ', '.join(f'{task_name(r[1])} at {r[2][0]:,}' for r in control[1])
        image = lambda name, text: f'![{text}]({self.s.page}-{name}.svg)\n' if name in made else ''
        licences = table(['package', 'version', 'domain', 'licence'],
                         [[s['package'], s['version'], s['domain'], s['licence']] for s in self.sources])
        run = self.run
        parts = [
            f'# {self.s.title}\n',
            f'This page is written by `bench/parity.py page` from `{os.path.relpath(self.s.folder, ROOT)}`. It answers one question: what '
            'does a model lose that goes on training with DeepSeek Sparse Attention, against the same model that goes on '
            'with dense attention, on the same batches, from the same weights and moments?\n',
            '## What was run\n', *[x + '\n' for x in run['what']], self.totals_table(),
            'Not run: ' + run['not_run'] + '\n',
            '## Table\n',
            self.table_head(), self.main_table(),
            '## Marks\n', *['- ' + x for x in self.acceptance(control)], '',
            *[x + '\n' for x in run['reading']],
            '## Controls\n',
            f'Exact match, percent, by group{", and bits per byte" if self.domains else ""}. Cells that every row has: {cells}; as many sequences as '
            'the row with fewest has.\n',
            table(['', *(g for g, _ in GROUPS), 'all', *(f'{d}, bpb' for d in self.domains), 'seeds'],
                  self.control_table(control[0], names, control[1])), self.drift(control),
            '## Over the steps\n',
            image('loss', 'training loss of both arms'),
            image('difference', 'difference of the losses'),
            image('kl', 'KL of the indexer'),
            image('indexer', 'recall and mass of the selection'),
            image('base', 'training loss before the arms'),
            '## Top-k\n', self.sweep() or 'Not run.\n',
            *[x for name in run.get('sections', []) for x in Page(Settings(os.path.join(RESULTS, name))).section()],
            '## Data\n',
            'Text: Debian packages under permissive licences, split by file into training and held out by a hash of the '
            'path, a line kept once over all of them (`bench/parity_text.py`). The licence is that of nearly all of a package; its copyright file has the rest. Exercises: docs/training.md, other seeds '
            'for the evaluation.\n', licences,
            '## Again\n', run['again'] + '\n']
        with open(os.path.join(ROOT, f'docs/{self.s.page}.md'), 'w', encoding='utf-8') as f:
            f.write('\n'.join(p for p in parts if p is not None))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=['collect', 'page'])
    parser.add_argument('raw', nargs='?')
    parser.add_argument('experiment', nargs='?')
    args = parser.parse_args()
    if args.what == 'collect':
        if not args.experiment:
            parser.error('collect wants the folder RAW and the name of the experiment')
        return collect(args.raw, Settings(os.path.join(RESULTS, args.experiment)))
    for name in sorted(os.listdir(RESULTS)):
        if os.path.exists(os.path.join(RESULTS, name, 'steps.jsonl.gz')):
            Page(Settings(os.path.join(RESULTS, name))).write()
    return None


if __name__ == '__main__':
    main()
