#!/usr/bin/env python3
"""Registers, stack and spills of every kernel, as ptxas reports them, against the recorded ones.

  resources.py NVCC PTXAS_LOG RECORD            compare; exits 1 where they differ
  resources.py NVCC PTXAS_LOG RECORD --write    record

Another release of nvcc allocates registers in another way: then nothing is compared (exit 77).
A kernel may use fewer registers than recorded; more than that, or a spill that was not there, must
be looked at and recorded anew. A kernel that is not recorded must not spill.
"""
import re
import subprocess
import sys


def nvcc_version(nvcc):
    text = subprocess.run([nvcc, '--version'], check=True, capture_output=True, text=True).stdout
    return re.search(r'release (\d+\.\d+)', text).group(1)


def demangle(names):
    text = '\n'.join(names)
    out = subprocess.run(['c++filt'], input=text, check=True, capture_output=True, text=True).stdout
    plain = []
    for line in out.splitlines():
        line = re.sub(r'_INTERNAL_\w+::|_GLOBAL__N__\w+::|\(anonymous namespace\)::', '', line)
        line = re.sub(r'\([\w: ]+\)(?=\d)', '', line.replace('tamis::', ''))  # casts of arguments
        plain.append(re.sub(r'\(.*', '', line).removeprefix('void ').strip())
    return plain


ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)a?'")
FILE_HASH = re.compile(r'__N__[0-9a-f]{8}(_\d+_\w+?_cu_)[0-9a-f]{8}')  # in an unnamed namespace
STACK = re.compile(r'(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads')
USED = re.compile(r'Used (\d+) registers')


def read_log(path):
    """{(kernel, sm): (registers, stack bytes, spilled bytes)}. The last report of a kernel counts;
    of kernels with one name in several files, which come in any order, the one that takes most."""
    found, key, stack = {}, None, (0, 0)
    for line in open(path, encoding='utf-8', errors='replace'):
        if entry := ENTRY.search(line):
            key = (FILE_HASH.sub(r'__N__00000000\g<1>00000000', entry.group(1)), int(entry.group(2)))
        elif key and (m := STACK.search(line)):
            stack = (int(m.group(1)), int(m.group(2)) + int(m.group(3)))
        elif key and (m := USED.search(line)):
            found[key] = (int(m.group(1)), *stack)
            key = None
    table = {}
    for name, ((_, sm), value) in zip(demangle([name for name, _ in found]), found.items()):
        table[(name, sm)] = max(value, table.get((name, sm), value))
    return table


def read_record(path):
    """The version of nvcc, and the same table."""
    lines = open(path, encoding='utf-8').read().splitlines()
    version = re.search(r'nvcc (\S+)', lines[0]).group(1)
    table = {}
    for line in lines:
        if line and not line.startswith('#'):
            sm, registers, stack, spilled, name = line.split(None, 4)
            table[(name, int(sm))] = (int(registers), int(stack), int(spilled))
    return version, table


def write_record(path, version, table):
    with open(path, 'w', encoding='utf-8') as out:
        out.write(f'# What ptxas of nvcc {version} says of each kernel; tests/cuda/resources.py '
                  'compares.\n# sm, registers, bytes of stack, bytes spilled, kernel\n')
        for (name, sm), value in sorted(table.items()):
            out.write(f'{sm:3} {value[0]:3} {value[1]:4} {value[2]:4} {name}\n')


def differences(got, want):
    for key in sorted(got):
        recorded = want.get(key, (255, 0, 0))
        if any(g > w for g, w in zip(got[key], recorded)):
            what = f'recorded {recorded}' if key in want else 'not recorded'
            yield f'{key[0]} (sm_{key[1]}): registers, stack, spilled {got[key]}, {what}'


def main():
    nvcc, log, record = sys.argv[1:4]
    version, got = nvcc_version(nvcc), read_log(log)
    if not got:
        sys.exit(f'{log}: no report of ptxas')
    if sys.argv[4:] == ['--write']:
        return write_record(record, version, got)
    recorded, want = read_record(record)
    if version.split('.')[0] != recorded.split('.')[0]:
        print(f'recorded with nvcc {recorded}, this is {version}: not compared')
        sys.exit(77)
    found = list(differences(got, want))
    new = [name for name, sm in got if (name, sm) not in want]
    print(f'{len(got)} kernels, {len(found)} need more than recorded, {len(new)} not recorded', *new,
          sep='\n  ')
    if found:
        sys.exit('\n'.join(found))


if __name__ == '__main__':
    main()
