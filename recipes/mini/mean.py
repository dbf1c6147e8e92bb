#!/usr/bin/env python3
"""Weights between those of two models of one shape, in the files and types of the first.

  recipes/mini/mean.py FIRST SECOND OUT --second 0.4 [--only .indexer.]

OUT = (1 - 0.4) FIRST + 0.4 SECOND, each product and the sum rounded to float32, then to bf16 where FIRST has that.
With --only, of the tensors that have this in their names; the others are FIRST's.
"""
import argparse
import array
import json
import os
import shutil
import struct
import sys


def files(folder):
    return [os.path.join(folder, f) for f in sorted(os.listdir(folder)) if f.endswith('.safetensors')]


def header(f):
    size = struct.unpack('<Q', f.read(8))[0]
    return json.loads(f.read(size)), 8 + size


def values(raw, dtype):
    if dtype == 'F32':
        return array.array('f', raw)
    wide = bytearray(2 * len(raw))
    wide[2::4], wide[3::4] = raw[0::2], raw[1::2]
    return array.array('f', bytes(wide))


def rounded(numbers, dtype):
    if dtype == 'F32':
        return numbers.tobytes()
    bits = array.array('I', numbers.tobytes())
    return array.array('H', ((b + 0x7FFF + (b >> 16 & 1)) >> 16 for b in bits)).tobytes()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('first')
    p.add_argument('second')
    p.add_argument('out')
    p.add_argument('--second', dest='share', type=float, default=0.5, help='share of the second one')
    p.add_argument('--only', default='', help='part of the names of tensors that are mixed')
    args = p.parse_args()
    one, two = array.array('f', [1 - args.share, args.share])
    other = {}
    for path in files(args.second):
        with open(path, 'rb') as f:
            tensors, begin = header(f)
            for name, t in tensors.items():
                if name != '__metadata__' and args.only in name:
                    other[name] = (path, begin, t)
    os.makedirs(args.out, exist_ok=True)
    for path in files(args.first):
        with open(path, 'rb') as f:
            tensors, begin = header(f)
            f.seek(0)
            whole = bytearray(f.read())
        for name, t in tensors.items():
            if name == '__metadata__' or args.only not in name:
                continue
            if name not in other or other[name][2]['shape'] != t['shape']:
                sys.exit(f'{name}: not the same in {args.second}')
            source, at, u = other.pop(name)
            for kind in (t['dtype'], u['dtype']):
                if kind not in ('BF16', 'F32'):
                    sys.exit(f'{name}: {kind}, want BF16 or F32')
            a, b = (begin + x for x in t['data_offsets'])
            c, d = (at + x for x in u['data_offsets'])
            with open(source, 'rb') as f:
                f.seek(c)
                y = values(f.read(d - c), u['dtype'])
            x = values(whole[a:b], t['dtype'])
            x, y = array.array('f', (one * v for v in x)), array.array('f', (two * v for v in y))
            whole[a:b] = rounded(array.array('f', (v + w for v, w in zip(x, y))), t['dtype'])
        with open(os.path.join(args.out, os.path.basename(path)), 'wb') as f:
            f.write(whole)
    if other:
        sys.exit(f'{args.first} has no {next(iter(other))}')
    for name in os.listdir(args.first):
        if name.endswith('.json'):
            shutil.copy(os.path.join(args.first, name), args.out)


if __name__ == '__main__':
    main()
