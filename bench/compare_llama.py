#!/usr/bin/env python3
"""Time Tamis and llama.cpp on the same weights in one run and print the ratios.

Called by scripts/compare-llama, which makes the models. For each format the two engines take turns,
so that a machine that slows down slows both. Ratios carry over to other machines, tokens per second
do not. Each engine runs as it does by default: both round activations where weights are int8.
"""
import argparse
import itertools
import json
import os
import subprocess
import sys

PREFILL = [512, 2048]
DECODE = [0, 2048, 8192, 32768]
# (format, folder for Tamis, file for llama.cpp)
FORMATS = [('bf16', 'model-hf', 'deepseek2.bf16.gguf'),
           ('int8 / Q8_0', 'model-int8', 'deepseek2.q8_0.gguf')]
# Tamis must reach these multiples of llama.cpp: (format, what, size) -> ratio.
FLOORS = {('bf16', 'decode', 0): 1.1, ('int8 / Q8_0', 'decode', 0): 1.3,
          ('bf16', 'decode', 8192): 2.5, ('int8 / Q8_0', 'decode', 8192): 2.5,
          ('bf16', 'decode', 32768): 6.0, ('int8 / Q8_0', 'decode', 32768): 6.0,
          ('bf16', 'prefill', 512): 1.3, ('bf16', 'prefill', 2048): 1.3,
          ('int8 / Q8_0', 'prefill', 512): 1.8, ('int8 / Q8_0', 'prefill', 2048): 1.8}


def listed(sizes):
    return ','.join(map(str, sizes))


def output_of(command):
    print('+ ' + ' '.join(command), file=sys.stderr)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def time_llama(args, path):
    """{what: {size: tokens per second}}, the best of flash attention off and on and of its caches."""
    best = {'prefill': {}, 'decode': {}}
    for flash, cache in itertools.product(args.flash.split(','), args.caches.split(',')):
        if flash == 'off' and cache == 'q8_0':
            continue  # llama.cpp refuses it
        result = json.loads(output_of(
            [args.python, os.path.join(os.path.dirname(__file__), 'llama_bench.py'), path,
             '--threads', str(args.threads), '--flash', flash, '--cache', cache,
             '--repeats', str(args.repeats), '--prefill', listed(args.prefill),
             '--decode', listed(args.decode)]))
        for what, rates in best.items():
            for size, rate in result[what].items():
                rates[int(size)] = max(rate, rates.get(int(size), 0.0))
    return best


def time_tamis(args, folder):
    """As time_llama; the cache in 16 bits, as llama.cpp has it by default."""
    rates = {}
    for what, flag, key, wanted in (('prefill', '--length', 'tokens', args.prefill),
                                    ('decode', '--depth', 'depth', args.decode)):
        if not wanted:
            rates[what] = {}
            continue
        lines = output_of([args.tamis, 'bench', what, '-m', folder, '--threads', str(args.threads),
                           '--cache-type', 'bf16', '--repeat', str(args.repeats + 1), '--json',
                           flag, listed(wanted)]).splitlines()
        rates[what] = {row[key]: row['tokens_per_s'] for row in map(json.loads, lines)}
    return rates


def sizes(text):
    return [int(part) for part in text.split(',') if part]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', required=True, help='folder made by make_cpu_model.py')
    parser.add_argument('--python', required=True, help='an interpreter that has llama_cpp')
    parser.add_argument('--tamis', help='without it only llama.cpp is timed')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--prefill', type=sizes, default=PREFILL)
    parser.add_argument('--decode', type=sizes, default=DECODE)
    parser.add_argument('--flash', default='off,on')
    parser.add_argument('--caches', default='f16,q8_0',
                        help="types of llama.cpp's cache, the fastest of which counts")
    parser.add_argument('--repeats', type=int, default=2,
                        help='runs of llama.cpp, the best of which counts; one more of Tamis, the '
                             'median of which counts')
    parser.add_argument('--formats', default='bf16,int8')
    parser.add_argument('--out', help='write all numbers here as JSON')
    args = parser.parse_args()

    rows = []
    for name, folder, gguf in FORMATS:
        if name.split()[0] not in args.formats.split(','):
            continue
        theirs = time_llama(args, os.path.join(args.models, gguf))
        ours = time_tamis(args, os.path.join(args.models, folder)) if args.tamis else None
        for what, rates in theirs.items():
            for size, rate in sorted(rates.items()):
                mine = ours[what].get(size) if ours else None
                rows.append({'format': name, 'what': what, 'size': size, 'llama_cpp': rate,
                             'tamis': mine, 'ratio': mine / rate if mine else None,
                             'floor': FLOORS.get((name, what, size))})
        if args.out:
            with open(args.out, 'w', encoding='utf-8') as file:
                json.dump(rows, file, indent=1)
    print('| weights | what | size | llama.cpp | tamis | ratio | wanted |')
    print('| --- | --- | --- | --- | --- | --- | --- |')
    for row in rows:
        def shown(key, digits):
            return '-' if row[key] is None else f'{row[key]:.{digits}f}'
        print(f"| {row['format']} | {row['what']} | {row['size']} | {shown('llama_cpp', 1)} | "
              f"{shown('tamis', 1)} | {shown('ratio', 2)} | {shown('floor', 1)} |")


if __name__ == '__main__':
    main()
