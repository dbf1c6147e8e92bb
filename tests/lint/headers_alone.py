#!/usr/bin/env python3
"""Every header compiles alone: each is given to the compiler with nothing before it.

Flags and include paths are those of the build (compile_commands.json).
"""
import argparse
import concurrent.futures
import json
import os
import shlex
import subprocess
import sys


def flags_of_build(build):
    """Include paths, definitions and language flags of all C++ commands of the build."""
    with open(os.path.join(build, 'compile_commands.json'), encoding='utf-8') as file:
        commands = json.load(file)
    paths, language = [], []
    for command in commands:
        words = shlex.split(command['command'])
        for word, following in zip(words, words[1:] + ['']):
            if word == '-isystem' and ('-isystem', following) not in paths:
                paths.append((word, following))
            elif word.startswith('-I') and (word,) not in paths:
                paths.append((word,))
            elif word.startswith(('-std=', '-W')) and word not in language:
                language.append(word)
    return language + [part for path in paths for part in path]


def compile_alone(compiler, flags, header):
    """The compiler's complaint, or an empty string."""
    source = f'#include "{os.path.abspath(header)}"\n#include "{os.path.abspath(header)}"\n'
    done = subprocess.run([compiler, *flags, '-fsyntax-only', '-x', 'c++', '-'], input=source,
                          capture_output=True, text=True)
    return '' if done.returncode == 0 else f'{header} does not compile alone:\n{done.stderr}'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--compiler', default='c++')
    parser.add_argument('--build', default='build/dev')
    parser.add_argument('headers', nargs='*')
    args = parser.parse_args()
    headers = args.headers
    if not headers:
        listing = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others',
                                  '--exclude-standard', 'src/*.h', 'tests/*.h', 'fuzz/*.h',
                                  'bench/*.h'],
                                 check=True, capture_output=True, text=True).stdout
        # *-inl.h is compiled once per instruction set by the file that includes it.
        headers = [h for h in listing.split('\0') if h and not h.endswith('-inl.h')
                   and os.path.isfile(h)]
    if not headers:
        sys.exit('headers_alone: no headers found; run it from the root of a checkout')
    flags = flags_of_build(args.build)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        complaints = [c for c in pool.map(
            lambda h: compile_alone(args.compiler, flags, h), headers) if c]
    print('\n'.join(complaints))
    print(f'{len(headers)} headers, {len(complaints)} do not compile alone')
    sys.exit(1 if complaints else 0)


if __name__ == '__main__':
    main()
