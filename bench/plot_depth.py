#!/usr/bin/env python3
"""Plot decode speed against depth from the JSON lines of `tamis bench decode --json`.

    bench/plot_depth.py bench/results/2026-11-24-decode-depth.jsonl docs/performance/decode-depth.svg
"""
import json
import sys

import matplotlib
matplotlib.use('svg')
import matplotlib.pyplot as plt


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding='utf-8') as lines:
        rows = [json.loads(line) for line in lines]
    matplotlib.rcParams['svg.hashsalt'] = 'tamis'  # the same bytes for the same data
    figure, axes = plt.subplots(figsize=(7, 4))
    for attention, style in (('sparse', 'o-'), ('dense', 's--')):
        points = [(r['depth'], r['tokens_per_s']) for r in rows if r['attention'] == attention]
        axes.plot([max(d, 256) for d, _ in points], [t for _, t in points], style, label=attention)
    axes.set_xscale('log', base=2)
    axes.set_xticks([256, 512, 2048, 4096, 8192, 16384, 32768])
    axes.set_xticklabels(['0', '512', '2K', '4K', '8K', '16K', '32K'])
    axes.set_xlabel('tokens of context')
    axes.set_ylabel('tokens per second')
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(title='attention')
    figure.tight_layout()
    figure.savefig(sys.argv[2], metadata={'Date': None})


if __name__ == '__main__':
    main()
