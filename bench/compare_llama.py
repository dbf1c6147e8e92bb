#!/usr/bin/env python3
"""Time Tamis and llama.cpp on the same weights in one run and print the ratios.

Called by scripts/compare-llama, which makes the models. For each format the two engines take turns,
so that a machine that slows down slows both; the median of an engine's turns counts, and of llama.cpp's
ways to run the fastest. Ratios carry over to other machines, tokens per second
do not. Each engine runs as it does by default: both round activations where weights are int8.
"""
import argparse
import itertools
import json
import os
import statistics
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


def time_llama(args, path, flash, cache):
    """{(what, size): tokens per second} of one way to run it."""
    result = json.loads(output_of(
        [args.python, os.path.join(os.path.dirname(__file__), 'llama_bench.py'), path,
         '--threads', str(args.threads), '--flash', flash, '--cache', cache,
         '--repeats', str(args.repeats),
         '--prefill', listed(args.prefill), '--decode', listed(args.decode)]))
    return {(what, int(size)): rate for what in ('prefill', 'decode')
            for size, rate in result[what].items()}


def time_tamis(args, folder):
    """As time_llama; the cache in 16 bits, as llama.cpp has it by default."""
    rates = {}
    for what, flag, key, wanted in (('prefill', '--length', 'tokens', args.prefill),
                                    ('decode', '--depth', 'depth', args.decode)):
        if wanted:
            lines = output_of([args.tamis, 'bench', what, '-m', folder, '--threads', str(args.threads),
                               '--cache-type', 'bf16', '--repeat', str(args.repeats + 1),
                               '--json', flag, listed(wanted)]).splitlines()
            rates.update({(what, row[key]): row['tokens_per_s'] for row in map(json.loads, lines)})
    return rates


def take_turns(args, folder, gguf):
    """{way to run: {(what, size): [rate of each turn]}}; the way of Tamis is None."""
    ways = [(flash, cache)
            for flash, cache in itertools.product(args.flash.split(','), args.caches.split(','))
            if not (flash == 'off' and cache == 'q8_0')]  # which llama.cpp refuses
    if args.tamis:
        ways.append(None)
    rates = {way: {} for way in ways}
    for _ in range(args.turns):
        for way in ways:
            path = os.path.join(args.models, gguf if way else folder)
            turn = time_llama(args, path, *way) if way else time_tamis(args, path)
            for key, rate in turn.items():
                rates[way].setdefault(key, []).append(rate)
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
                        help='runs of llama.cpp in a turn, the best of which is the turn; one more of '
                             'Tamis, the median of which is')
    parser.add_argument('--turns', type=int, default=3, choices=range(1, 100), metavar='N',
                        help='how often each engine runs, one after the other; the median counts')
    parser.add_argument('--formats', default='bf16,int8')
    parser.add_argument('--out', help='write all numbers here as JSON')
    args = parser.parse_args()

    rows = []
    for name, folder, gguf in FORMATS:
        if name.split()[0] not in args.formats.split(','):
            continue
        rates = take_turns(args, folder, gguf)
        ours = {key: statistics.median(turns) for key, turns in rates.pop(None, {}).items()}
        wanted = [('prefill', size) for size in args.prefill]
        for key in wanted + [('decode', size) for size in args.decode]:
            theirs, way = max((statistics.median(turns[key]), way) for way, turns in rates.items())
            mine = ours.get(key)
            rows.append({'format': name, 'what': key[0], 'size': key[1], 'llama_cpp': theirs,
                         'llama_cpp_way': f'flash {way[0]}, cache {way[1]}', 'tamis': mine,
                         'ratio': mine / theirs if mine else None, 'turns': args.turns,
                         'floor': FLOORS.get((name, *key))})
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
