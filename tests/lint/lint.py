#!/usr/bin/env python3
"""Rules of the source tree. `lint.py RULE` prints each violation and exits 1 if there is one.

A rule is a function from a tree (path -> text of every tracked text file) to a list of messages,
so that lint_selftest.py can run it on a planted violation.
"""
import fnmatch
import json
import os
import re
import subprocess
import sys

# The house (docs/architecture.md): a folder of src/ includes only itself and lower levels.
LEVELS = {
    'base': 0, 'tensor': 1, 'kernels': 2, 'comm': 2, 'checkpoint': 3, 'text': 3, 'model': 4,
    'engine': 5, 'train': 5, 'eval': 6, 'server': 6, 'cli': 7,
}

# Costly or system-bound headers, and the only places where they may be included.
HEADER_PLACES = {
    r'nlohmann/(?!json_fwd).*': ['*.cpp'],
    r'CLI/.*': ['src/cli/*.cpp'],
    r'toml\+\+/.*': ['src/cli/*.cpp', 'src/train/*.cpp'],
    r'spdlog/.*': ['src/base/*.cpp'],
    r'fmt/.*': ['*.cpp'],
    r'mpi\.h': ['src/comm/mpi.cpp'],
    r'nccl\.h': ['src/comm/nccl.cpp'],
    r'(cuda|cublas|cub/|nvtx).*': ['src/tensor/cuda/*', 'src/kernels/*.cu', 'src/kernels/*.cuh',
                                   'src/comm/nccl.cpp'],
    r'hwy/.*': ['src/kernels/*', 'src/tensor/*'],
    r'pcre2.*': ['src/text/*.cpp'],
    r'xxhash\.h': ['*.cpp'],
    r'(boost|openssl)/.*': ['src/server/*.cpp'],
    r'(gtest|gmock|rapidcheck)[/.].*': ['*_test.cpp', 'tests/*'],
    r'benchmark/.*': ['*_bench.cpp', 'bench/*'],
    r'regex': [],
}

# (pattern, reason, places where it is allowed)
BANNED = [
    (r'\bstd::w?regex\b', 'std::regex overflows the stack on long input; use PCRE2 or a scanner', []),
    (r'\balloca\s*\(', 'alloca: stack size would depend on input', []),
    (r'\b(strcpy|strcat|sprintf|vsprintf|gets)\s*\(', 'writes without a bound', []),
    (r'(?<![\w.>])(std::)?system\s*\(', 'no shell from the program', []),
    (r'(?<![\w.>])popen\s*\(', 'no shell from the program', []),
    # cuBLASLt, half a gigabyte, and NCCL, a fifth of one, are loaded when someone asks for them.
    (r'\bdlopen\s*\(', 'no code loaded at run time',
     ['src/kernels/linear/cublaslt.cu', 'src/comm/nccl.cpp']),
    (r'(?<![\w.>:])(std::|::)?(exit|_exit|abort|quick_exit)\s*\(',
     'libraries never end the process; throw an error of base/error.h',
     ['tests/*', '*_test.cpp', 'fuzz/*']),
    (r'\busing namespace std\b', 'no using namespace std', []),
    (r'\b(TODO|FIXME|XXX)\b', 'finish it or leave it out', []),
    (r'\bGTEST_SKIP\b(?!.*(TAMIS_FIXTURES|fixture folder))', 'only a missing fixture folder may skip a test', []),
    (r'\bDISABLED_', 'a test runs or does not exist', []),
    (r'^\s*#\s*if.*(CUDA|MPI|NCCL)', 'device conditions belong into build files and dispatch',
     ['src/comm/*', 'src/tensor/*', 'src/kernels/*']),
]

# Names of somebody's machine or folders have no place in the product. The exception is the
# continuous integration script, which looks for larger fixtures beside the checkout.
WORDS = [r'(?<![\w.~])/(home|root|work|tmp/wt)/', r'\.\./(shared|scratch)\b']
WORDS_ALLOWED = {'.ci/run', 'tests/lint/lint_selftest.py'}

MAX_LINES = 800
MAX_TREE_BYTES = 45_000_000
MAX_GOLDEN_BYTES = 10_000_000

CODE = ('.cpp', '.h', '.cu', '.cuh')


def without_comments(text):
    """The text with comments and string contents blanked, line by line as before."""
    pattern = re.compile(
        r'R"(?P<tag>[^()\\ ]*)\(.*?\)(?P=tag)"'
        r'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|//[^\n]*|/\*.*?\*/', re.S)

    def blank(match):
        part = match.group(0)
        return '\n' * part.count('\n') if part.startswith(('/', 'R')) else part[0] + part[-1]
    # Digit separators (1'000) are no character literals.
    return pattern.sub(blank, re.sub(r"(?<=[0-9a-fA-F])'(?=[0-9a-fA-F])", '', text))


def code_files(tree):
    return {path: text for path, text in tree.items() if path.endswith(CODE)}


def includes(text):
    for number, line in enumerate(text.split('\n'), 1):
        match = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
        if match:
            yield number, match.group(2)


def placed(path, places):
    return any(fnmatch.fnmatchcase(path, place) for place in places)


def include_direction(tree):
    found = []
    for path, text in code_files(tree).items():
        parts = path.split('/')
        if parts[0] != 'src':
            continue
        own = parts[1]
        if own not in LEVELS:
            found.append(f'{path}: folder src/{own} has no level in the house')
            continue
        for number, name in includes(text):
            target = name.split('/')[0]
            if name.startswith('.'):
                found.append(f'{path}:{number}: write "{name}" as a path below src/')
            elif '/' in name and target in LEVELS and target != own:
                if LEVELS[target] >= LEVELS[own]:
                    found.append(f'{path}:{number}: {own} (level {LEVELS[own]}) includes {name} '
                                 f'(level {LEVELS[target]}): includes only point down')
    return found


def header_places(tree):
    found = []
    for path, text in code_files(tree).items():
        for number, name in includes(text):
            for pattern, places in HEADER_PLACES.items():
                if re.fullmatch(pattern, name) and not placed(path, places):
                    where = ', '.join(places) or 'nowhere'
                    found.append(f'{path}:{number}: <{name}> is allowed in: {where}')
    return found


def banned_constructs(tree):
    found = []
    for path, text in code_files(tree).items():
        code = without_comments(text).split('\n')
        for number, (plain, line) in enumerate(zip(code, text.split('\n')), 1):
            for pattern, reason, allowed in BANNED:
                # Words in comments and the reason of a skip count; elsewhere only code does.
                seen = line if re.search('TODO|SKIP', pattern) else plain
                if re.search(pattern, seen) and not placed(path, allowed):
                    found.append(f'{path}:{number}: {reason}: {line.strip()}')
    return found


def header_form(tree):
    """A header opens with its purpose, has #pragma once, and no using namespace."""
    found = []
    for path, text in tree.items():
        if not path.endswith(('.h', '.cuh')):
            continue
        if not text.startswith('//'):
            found.append(f'{path}:1: a header opens with a comment: what it is for')
        # Highway compiles *-inl.h once for each instruction set, with a guard of its own.
        if not path.endswith('-inl.h') and not re.search(r'^#pragma once$', text, re.M):
            found.append(f'{path}: no #pragma once')
        for number, line in enumerate(without_comments(text).split('\n'), 1):
            if re.match(r'using namespace\b', line):
                found.append(f'{path}:{number}: using namespace in a header')
    return found


def file_sizes(tree, sizes=None):
    found = []
    for path, text in code_files(tree).items():
        lines = text.count('\n')
        if lines > MAX_LINES:
            found.append(f'{path}: {lines} lines, at most {MAX_LINES}')
    if sizes is None:
        sizes = {path: os.path.getsize(path) for path in tracked() if os.path.isfile(path)}
    total = sum(sizes.values())
    if total > MAX_TREE_BYTES:
        found.append(f'tracked files: {total} bytes, at most {MAX_TREE_BYTES}')
    golden = sum(size for path, size in sizes.items() if path.startswith('tests/golden/'))
    if golden > MAX_GOLDEN_BYTES:
        found.append(f'tests/golden: {golden} bytes, at most {MAX_GOLDEN_BYTES}')
    return found


def words(tree):
    found = []
    for path, text in tree.items():
        if path in WORDS_ALLOWED:
            continue
        for number, line in enumerate(text.split('\n'), 1):
            if any(re.search(word, line) for word in WORDS):
                found.append(f'{path}:{number}: names a machine or a workplace: '
                             f'{line.strip()[:100]}')
    return found


def documents(tree):
    """Relative links of Markdown files lead somewhere; the demo's question holds its document."""
    found = []
    for path, text in tree.items():
        if not path.endswith('.md'):
            continue
        for link in re.findall(r'\]\(([^)#\s]+)[^)]*\)', text):
            if re.match(r'[a-z]+:', link):
                continue
            target = os.path.normpath(os.path.join(os.path.dirname(path), link))
            if target not in tree and not any(p.startswith(target + '/') for p in tree):
                found.append(f'{path}: link to {link}, which does not exist')
    document = tree.get('models/documents/needle-4k.txt')
    if document is not None:
        question = json.loads(tree['models/documents/question.json'])[0]['content']
        if not question.startswith(document.rstrip('\n')):
            found.append('models/documents/question.json does not begin with needle-4k.txt')
    return found


def changelog(tree):
    """The version in CMakeLists.txt is the newest one in CHANGELOG.md."""
    version = re.search(r'project\(tamis VERSION ([\d.]+)', tree['CMakeLists.txt']).group(1)
    newest = re.search(r'^## (\S+)', tree['CHANGELOG.md'], re.M)
    if not newest or newest.group(1) != version:
        return [f'CHANGELOG.md does not begin with {version}, the version of CMakeLists.txt']
    return []


RULES = {rule.__name__: rule for rule in (
    include_direction, header_places, banned_constructs, header_form, file_sizes, words, documents,
    changelog)}


def tracked():
    """Tracked files, and new ones that git does not ignore: what a commit would hold."""
    listing = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    return [p for p in subprocess.run(listing, check=True, capture_output=True, text=True)
            .stdout.split('\0') if p]


def read_tree():
    tree = {}
    for path in tracked():
        if not os.path.isfile(path):
            continue
        # Data counts as being there; its text is nobody's prose.
        if (path.startswith(('tests/golden/', 'fuzz/corpus/'))
                or path.endswith(('.safetensors', 'tokenizer.json', '.png'))):
            tree[path] = ''
            continue
        with open(path, 'rb') as file:
            data = file.read()
        if b'\0' not in data[:8192]:
            tree[path] = data.decode('utf-8', errors='replace')
    return tree


def main():
    if len(sys.argv) != 2 or sys.argv[1] not in RULES:
        sys.exit('usage: lint.py ' + '|'.join(RULES))
    tree = read_tree()
    if not code_files(tree):
        sys.exit('lint: no source files found; run it from the root of a checkout')
    found = RULES[sys.argv[1]](tree)
    for message in found:
        print(message)
    print(f'{sys.argv[1]}: {len(tree)} files, {len(found)} violations')
    sys.exit(1 if found else 0)


if __name__ == '__main__':
    main()
