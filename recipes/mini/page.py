#!/usr/bin/env python3
"""docs/mini-training.md from the numbers of the run.

  recipes/mini/page.py collect RESULTS   takes what recipes/mini/run left in WORK/results into bench/results/mini
  recipes/mini/page.py page              writes the page

bench/results/mini/run.json, written by hand, says what was run and how to read it; mass.jsonl has what
`tamis train` measures of the indexers of both models on both texts; mean.jsonl the losses of other shares of the mean;
tuned.jsonl those of the tuning. Models: `sparse` and `dense` are the bundled model and its twin, `last` is the former
before the tuning, `mean` and `mean-dense` both before the 40 steps, `arm-sparse` and `arm-dense` what was trained before
the mean, `before` the first weights."""
import collections
import json
import os
import random
import sys

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '../..')
FOLDER = os.path.join(ROOT, 'bench/results/mini')
sys.path.insert(0, os.path.join(ROOT, 'bench'))
import parity  # noqa: E402
TEXTS = {'eval_public': '`eval_public.txt`', 'eval_clean_public': '`eval_clean_public.txt`', 'prose': 'prose, held out',
         'other': 'other, held out', 'code': 'code, held out'}
MODELS = {'sparse': 'bundled', 'dense': 'dense twin', 'last': 'after the 40 steps', 'mean': 'the mean',
          'mean-dense': 'the mean of the dense arm', 'before': 'before', 'arm-sparse': 'sparse arm', 'arm-dense': 'dense arm'}
SELECTIONS = ('sparse', 'dense', 'window', 'random')
STAGES = ('base', 'warmup', 'sparse', 'dense')


def read_lines(path):
    with open(path, encoding='utf-8') as f:
        return [json.loads(line) for line in f if line.strip()]


def write_lines(name, lines):
    os.makedirs(FOLDER, exist_ok=True)
    with open(os.path.join(FOLDER, name), 'w', encoding='utf-8') as f:
        for line in lines:
            f.write(json.dumps(line, separators=(',', ':')) + '\n')


def collect(raw):
    texts, questions = [], collections.OrderedDict()
    for name in sorted(os.listdir(raw)):
        parts = name.split('.')
        if len(parts) < 4 or parts[0] not in MODELS or parts[1] not in SELECTIONS:
            continue
        path = os.path.join(raw, name)
        if parts[2] in TEXTS:
            with open(path, encoding='utf-8') as f:
                r = json.load(f)
            texts.append({'model': parts[0], 'attention': parts[1], 'text': parts[2], 'nll': round(r['nll'], 6),
                          'bits_per_byte': round(r['bits_per_byte'], 6), 'tokens': r['tokens'], 'bytes': r['bytes'],
                          'by_position': {k: round(v, 4) for k, v in r['by_position'].items()}})
        elif parts[2] in ('kv', 'needle'):
            for r in read_lines(path):
                key = (parts[0], parts[1], r['task'], r['context'])
                cell = questions.setdefault(key, {'model': parts[0], 'attention': parts[1], 'task': r['task'],
                                                  'context': r['context'], 'cases': 0, 'right': 0, 'wrong': []})
                cell['cases'] += r['cases']
                cell['right'] += r['right']
                cell['wrong'] += [w['case'] for w in r['wrong']]
    write_lines('texts.jsonl', texts)
    write_lines('questions.jsonl', questions.values())
    write_lines('plan.jsonl', read_lines(os.path.join(raw, 'plan.jsonl')))
    steps, validations = [], []
    for name in STAGES:
        stages = collections.OrderedDict()
        for line in read_lines(os.path.join(raw, name + '.log')):
            if 'validation' in line:
                v = line['validation']
                validations.append({'stage': line['stage'], 'step': line['step'],
                                    'sources': [[s['source'].split('/')[-1], round(s['loss'], 5), round(s['accuracy'], 5)]
                                                for s in v['sources']],
                                    'mass': [round(h['mass'], 4) for h in v.get('indexer', []) if h.get('mass') is not None]})
                continue
            stages.setdefault(line['stage'], []).append(line)
        for stage, lines in stages.items():
            kl = [line.get('kl') or [] for line in lines]
            steps.append({'stage': stage, 'first': lines[0]['step'], 'tokens': sum(line['tokens'] for line in lines),
                          'seconds': round(sum(line['seconds'] for line in lines), 2),
                          'skipped': sum(bool(line.get('skipped')) for line in lines),
                          'loss': [line['loss'] and round(line['loss'], 4) for line in lines],
                          'kl': [round(sum(k) / len(k), 4) for k in kl[::10] if k]})
    write_lines('steps.jsonl', steps)
    write_lines('validations.jsonl', validations)


def table(head, rows):
    lines = ['| ' + ' | '.join(head) + ' |', '|' + ' --- |' * len(head)]
    return '\n'.join(lines + ['| ' + ' | '.join(r) + ' |' for r in rows]) + '\n'


class Page:
    def __init__(self):
        load = lambda name: read_lines(os.path.join(FOLDER, name))
        self.texts = {(t['model'], t['attention'], t['text']): t for t in load('texts.jsonl')}
        self.questions = {(q['model'], q['attention'], q['task'], q['context']): q for q in load('questions.jsonl')}
        self.mass, self.validations = load('mass.jsonl'), load('validations.jsonl')
        self.steps = {x['stage']: x for x in load('steps.jsonl')}
        with open(os.path.join(FOLDER, 'run.json'), encoding='utf-8') as f:
            self.run = json.load(f)

    def text_table(self):
        rows = []
        for text, name in TEXTS.items():
            for model in MODELS:
                found = [self.texts.get((model, a, text)) for a in SELECTIONS]
                if any(found):
                    rows.append([name, MODELS[model]] + [f'{t["nll"]:.4f} ({t["bits_per_byte"]:.4f})' if t else '-' for t in found])
        return table(['text', 'model', *SELECTIONS], rows)

    def question_table(self):
        rows = []
        for task, name in (('kv', 'key-value'), ('needle', 'needle in documentation')):
            for model in MODELS:
                for attention in SELECTIONS[:3]:
                    cells = [self.questions.get((model, attention, task, c)) for c in (1024, 2048, 4096)]
                    if any(cells):
                        rows.append([name, MODELS[model], attention] + [
                            f'{100 * c["right"] / c["cases"]:.1f} % of {c["cases"]}' if c else '-' for c in cells])
        return table(['task', 'model', 'selection', '1K', '2K', '4K'], rows)

    def verdicts(self):
        """The rows of the model's card, it and the one before with the same program on the same texts and questions."""
        rows = []
        for text in ('eval_public', 'eval_clean_public'):
            for a in SELECTIONS[:2]:
                new, old = (self.texts.get((m, a, text)) for m in ('sparse', 'before'))
                if new and old:
                    d = new['nll'] - old['nll']
                    rows.append([f'{TEXTS[text]}, {a}: nats a token', f'{old["nll"]:.4f}', f'{new["nll"]:.4f}', f'{d:+.4f}',
                                 'better' if d < 0 else 'worse'])
        for task in ('kv', 'needle'):
            for a in SELECTIONS[:2]:
                for c in (1024, 2048, 4096):
                    new, old = (self.questions.get((m, a, task, c)) for m in ('sparse', 'before'))
                    if not new or not old:
                        continue
                    n = min(new['cases'], old['cases'])
                    x, y = (100 * (1 - sum(w < n for w in q['wrong']) / n) for q in (new, old))
                    rows.append([f'{task}, {a}, {c:,} tokens, {n} questions: % right', f'{y:.2f}', f'{x:.2f}', f'{x - y:+.2f}',
                                 'better' if x > y else 'equal' if x == y else 'worse'])
        for layer, (y, x) in enumerate(zip(*(m['mass'] for m in sorted(self.mass, key=lambda m: m['model'] != 'before')))):
            rows.append([f'attention that the selected 256 hold, layer {layer}: %', f'{100 * y:.1f}', f'{100 * x:.1f}',
                         f'{100 * (x - y):+.1f}', 'better' if x > y else 'worse'])
        return table(['row', 'before', 'bundled', 'difference', ''], rows), rows

    def mean_table(self):
        """Losses of (1 - share) before + share sparse arm."""
        with open(os.path.join(FOLDER, 'mean.jsonl'), encoding='utf-8') as f:
            shares = [json.loads(line) for line in f]
        keys = [(t, a) for t in ('eval_public', 'eval_clean_public') for a in ('sparse', 'dense')]
        return table(['share of the arm', *(f'{TEXTS[t]}, {a}' for t, a in keys)],
                     [[f'{s["share"]:g}', *(f'{s["nll"][f"{t}.{a}"]:.4f}' for t, a in keys)] for s in shares])

    def tuned_table(self):
        """Losses, and wrong key-value questions, of (1 - share) after the 40 steps + share tuned."""
        keys = [(t, a) for t in ('eval_public', 'eval_clean_public') for a in ('sparse', 'dense')]
        number = lambda r, key: f'{r["nll"][key]:.4f}' if key in r['nll'] else '-'
        wrong = lambda r, c: ', '.join(map(str, r['wrong'][c])) or 'none' if c in r['wrong'] else '-'
        return table(['share of the tuned', 'indexer', *(f'{TEXTS[t]}, {a}' for t, a in keys), 'wrong at 1K', '2K', '4K'],
                     [[f'{r["share"]:g}', r['indexer'], *(number(r, f'{t}.{a}') for t, a in keys),
                       *(wrong(r, c) for c in ('1024', '2048', '4096'))] for r in read_lines(os.path.join(FOLDER, 'tuned.jsonl'))])

    def stage_table(self):
        rows = [[stage, f'{len(x["loss"]):,}', f'{x["tokens"] / 1e6:.1f}M', f'{x["seconds"]:.0f}', f'{x["tokens"] / x["seconds"]:,.0f}']
                for stage, x in self.steps.items()]
        return table(['stage', 'steps', 'tokens', 'seconds', 'tokens/s'], rows)

    def validation_table(self):
        names = [s[0] for s in self.validations[0]['sources']]
        return table(['after', *names], [[v['stage'], *(f'{loss:.3f}, {100 * right:.1f} %' for _, loss, right in v['sources'])]
                                         for v in self.validations])

    def arms(self):
        """Both arms' losses on the same batches, paired, and the difference's interval by a bootstrap of the steps."""
        a, b = self.steps['dense']['loss'], self.steps['sparse']['loss']
        ratio = lambda pairs: 100 * (sum(y for _, y in pairs) / sum(x for x, _ in pairs) - 1)
        rows, n = [], len(a)
        for name, part in (('first 50', slice(0, 50)), ('middle 50', slice(n // 2 - 25, n // 2 + 25)), ('last 50', slice(n - 50, n)),
                           ('last 200', slice(n - 200, n))):
            pairs = list(zip(a[part], b[part]))
            rng = random.Random(1)
            drawn = sorted(ratio(rng.choices(pairs, k=len(pairs))) for _ in range(2000))
            rows.append([name, f'{sum(x for x, _ in pairs) / len(pairs):.4f}', f'{sum(y for _, y in pairs) / len(pairs):.4f}',
                         f'{ratio(pairs):+.2f} % [{drawn[50]:+.2f}, {drawn[1949]:+.2f}]'])
        return table(['batches', 'dense arm', 'sparse arm', 'difference, 95 %'], rows)

    def plots(self):
        docs = os.path.join(ROOT, 'docs')
        points = lambda stage, key, every: [(self.steps[stage]['first'] + every * i, y)
                                            for i, y in enumerate(self.steps[stage][key]) if y is not None]
        loss = [(s, parity.smooth(points(s, 'loss', 1), 40)) for s in ('base', 'dense', 'sparse')]
        parity.plot(os.path.join(docs, 'mini-loss.svg'), 'Training loss, means of 40 batches', loss, 'step of the run', 'nats a token')
        a, b = points('dense', 'loss', 1), points('sparse', 'loss', 1)
        both = [(x, 100 * (z / y - 1)) for (x, y), (_, z) in zip(a, b)]
        parity.plot(os.path.join(docs, 'mini-difference.svg'), 'Loss of the sparse arm over the dense one on the same batch',
                    [('means of 40', parity.smooth(both, 40))], 'step of the run', 'percent')
        parity.plot(os.path.join(docs, 'mini-kl.svg'), 'KL of the indexer, mean over layers',
                    [('warm-up: every earlier token', points('warmup', 'kl', 10)), ('sparse: the selected', points('sparse', 'kl', 10))],
                    'step of the run', 'nats a token')

    def write(self):
        self.plots()
        verdicts, rows = self.verdicts()
        count = collections.Counter(r[-1] for r in rows)
        sources = table(['package', 'version', 'domain', 'licence', 'MB'],
                        [[s['package'], s['version'], s['domain'], s['licence'], f'{s["bytes"] / 1e6:.2f}' if s['bytes'] else '-']
                         for s in self.run['sources']])
        parts = [
            '# The bundled model\n',
            'This page is written by `recipes/mini/page.py page` from `bench/results/mini`. ' + self.run['head'] + '\n',
            '## What was run\n', *[x + '\n' for x in self.run['what']], self.stage_table(),
            'Held-out text, conversations and exercises after each stage, 16 sequences: nats a token of the '
            'targets, and how many of these are right.\n', self.validation_table(), '![training loss](mini-loss.svg)\n',
            '## Against the model before\n',
            f'The rows of its card, its controls apart, both models by the same program: {len(rows)} rows, '
            f'{count["better"]} better, {count["equal"]} equal, {count["worse"]} worse.\n',
            verdicts, *[x + '\n' for x in self.run['reading']],
            '## The mean\n', *[x + '\n' for x in self.run['mean']], self.mean_table(),
            '## The tuning\n', *[x + '\n' for x in self.run['tuning']], self.tuned_table(),
            '## Losses\n', self.run['losses'] + '\n', self.text_table(),
            '## Questions\n', self.run['questions'] + '\n', self.question_table(),
            '## Sparse beside dense\n', *[x + '\n' for x in self.run['arms']], self.arms(),
            '![difference of the losses](mini-difference.svg)\n', '![KL of the indexer](mini-kl.svg)\n',
            '## Limits\n', *[x + '\n' for x in self.run['limits']],
            '## Data and licences\n', self.run['data'] + '\n', sources,
            '## Again\n', self.run['again'] + '\n']
        with open(os.path.join(ROOT, 'docs/mini-training.md'), 'w', encoding='utf-8') as f:
            f.write('\n'.join(parts))


def main():
    if sys.argv[1:2] == ['collect'] and len(sys.argv) == 3:
        return collect(sys.argv[2])
    if sys.argv[1:] == ['page']:
        return Page().write()
    return print(__doc__) or 2


if __name__ == '__main__':
    sys.exit(main())
