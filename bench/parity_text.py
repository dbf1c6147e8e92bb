#!/usr/bin/env python3
"""Text for docs/parity.md: two domains from Debian packages under permissive licences.

  apt-get download PACKAGE... ; bench/parity_text.py OUT PACKAGE.deb...

writes OUT/{prose,code}.jsonl to learn from, OUT/{prose,code}-held-out.jsonl of other files,
OUT/{prose,code}-eval.jsonl of the long ones among these, and OUT/sources.json with the packages, their licences and sizes. A file is held out by a hash of its
path. A line that stood anywhere before, in either part, is left out: what a model saw while it
learned does not stand in the held-out text.
"""
import argparse
import gzip
import hashlib
import html.parser
import json
import os
import re
import subprocess
import sys
import tempfile

# Package: (domain, licence, parts of paths that are taken).
PACKAGES = {
    'apache2-doc': ('prose', 'Apache-2.0', ['/manual/en/', '.html.en']),
    'erlang-doc': ('prose', 'Apache-2.0', ['/html/']),
    'libssl-doc': ('prose', 'Apache-2.0', ['/man/']),
    'postgresql-doc-15': ('prose', 'PostgreSQL', ['/html/', '/man/']),
    'python-django-doc': ('prose', 'BSD-3-Clause', ['/html/']),
    'python3.11-doc': ('prose', 'PSF-2.0', ['/html/']),
    'sqlite3-doc': ('prose', 'public domain', ['/sqlite3/']),
    'tcl8.6-doc': ('prose', 'TCL', ['/man/']),
    'golang-1.19-src': ('code', 'BSD-3-Clause', ['/src/']),
    'libpython3.11-stdlib': ('code', 'PSF-2.0', ['/python3.11/']),
    'python3-django': ('code', 'BSD-3-Clause', ['/django/']),
    'python3-sympy': ('code', 'BSD-3-Clause', ['/sympy/']),
}
CODE = ('.go', '.py')
# Files of other licences, data, and what lists names alone.
LEFT_OUT = re.compile(r'/testdata/|/vendor/|/rubi/|genindex|_modules/|/locale/|/unicode/|tables\.go|zgoos|'
                      r'latex|/benchmarks/|search|/_static/|/antlr/|\bbuiltin|/ic/|rewrite')
HELD_OUT = 32      # one file in so many
SHORTEST = 12      # characters of a line that is looked up
LARGEST = 400_000  # bytes of a file


class Text(html.parser.HTMLParser):
    """The text of a page; blocks begin lines, scripts and navigation are left out."""
    BLOCKS = {'p', 'div', 'br', 'li', 'dt', 'dd', 'tr', 'pre', 'h1', 'h2', 'h3', 'h4', 'h5', 'table', 'ul'}
    SKIPPED = {'script', 'style', 'nav', 'head', 'footer'}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.out, self.skip, self.pre = [], 0, 0

    def handle_starttag(self, tag, attrs):
        if tag in self.SKIPPED:
            self.skip += 1
        self.pre += tag == 'pre'
        if tag in self.BLOCKS:
            self.out.append('\n')
        if tag in ('td', 'th'):
            self.out.append(' ')

    def handle_endtag(self, tag):
        if tag in self.SKIPPED:
            self.skip = max(0, self.skip - 1)
        if tag == 'pre':
            self.pre = max(0, self.pre - 1)
        if tag in self.BLOCKS:
            self.out.append('\n')

    def handle_data(self, data):
        if not self.skip:
            self.out.append(data if self.pre else re.sub(r'\s+', ' ', data))


def from_html(raw):
    parser = Text()
    parser.feed(raw)
    return ''.join(parser.out)


def from_man(raw):
    out = []
    for line in raw.splitlines():
        if line.startswith(('.SH', '.SS', '.TH')):
            out += ['', line.split(' ', 1)[-1].strip('"')]
        elif line.startswith('.') or line.startswith("'"):
            words = line.split(' ', 1)
            if words[0] in ('.B', '.I', '.BR', '.IR', '.BI', '.PP', '.IP', '.TP') and len(words) > 1:
                out.append(words[1])
        else:
            out.append(line)
    text = re.sub(r'\\f[A-Z]|\\&|\\\|', '', '\n'.join(out)).replace('\\-', '-').replace('\\e', '\\')
    return text.strip() + '\n'


def decoded(path, largest):
    """The text of a file, decompressed; nothing if it is not UTF-8 or has more than `largest` bytes."""
    with open(path, 'rb') as f:
        raw = f.read()
    if path.endswith('.gz'):
        raw = gzip.decompress(raw)
    if len(raw) > largest:
        return ''
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return ''


def text_of(path):
    name = path.removesuffix('.gz')
    raw = decoded(path, LARGEST * (4 if '.html' in name else 1))
    if '.html' in name:
        return from_html(raw)
    if '/man/' in name:
        return from_man(raw)
    return raw


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out')
    parser.add_argument('--megabytes', type=float, default=27, help='of each domain to learn from, at most')
    parser.add_argument('packages', nargs='+', metavar='PACKAGE.deb')
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    seen, sources, documents = set(), [], {}
    for package in sorted(args.packages):
        name, version = os.path.basename(package).split('_')[:2]
        if name not in PACKAGES:
            sys.exit(f'{package}: no licence is noted for it; known are {", ".join(PACKAGES)}')
        domain, licence, parts = PACKAGES[name]
        size = 0
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(['dpkg', '-x', package, folder], check=True)
            paths = sorted(os.path.join(d, f) for d, _, files in os.walk(folder) for f in files)
            for path in paths:
                own = path[len(folder):]
                wanted = own.endswith(CODE) if domain == 'code' else ('.html' in own or '/man/' in own)
                if (not wanted or os.path.islink(path) or LEFT_OUT.search(own) or
                        not any(part in own for part in parts)):
                    continue
                kept = []
                for line in text_of(path).splitlines():
                    line = line.rstrip()
                    key = hashlib.blake2b(line.strip().encode(), digest_size=8).digest()
                    if len(line.strip()) >= SHORTEST:
                        if key in seen:
                            continue
                        seen.add(key)
                    if line or (kept and kept[-1]):
                        kept.append(line)
                text = '\n'.join(kept).strip() + '\n'
                if len(text) < 400:
                    continue
                number = int.from_bytes(hashlib.blake2b(own.encode(), digest_size=8).digest(), 'big')
                part = '-held-out' if number % HELD_OUT == 0 else ''
                documents.setdefault(domain + part, []).append(text)
                size += len(text.encode())
        sources.append({'package': name, 'version': version.replace('%3a', ':'), 'domain': domain,
                        'licence': licence, 'bytes': size})
        print(f'{name:24} {size / 1e6:7.2f} MB', flush=True)
    for name, texts in documents.items():
        if not name.endswith('-held-out'):  # of more, those with the lowest hashes
            texts.sort(key=lambda t: hashlib.blake2b(t.encode(), digest_size=8).digest())
            kept, size = [], 0
            for text in texts:
                if size > args.megabytes * 1e6:
                    break
                kept.append(text)
                size += len(text.encode())
            texts = kept
        with open(os.path.join(args.out, name + '.jsonl'), 'w', encoding='utf-8') as f:
            for text in texts:
                f.write(json.dumps({'text': text}, ensure_ascii=False) + '\n')
        print(f'{name:24} {sum(len(t.encode()) for t in texts) / 1e6:7.2f} MB, {len(texts)} files')
    # For `tamis eval perplexity`: held-out files of more than about 2,300 tokens, cut at 8,150.
    for domain, size in (('prose', 3.8), ('code', 3.0)):  # characters of a token
        with open(os.path.join(args.out, domain + '-eval.jsonl'), 'w', encoding='utf-8') as f:
            for text in documents.get(domain + '-held-out', []):
                if len(text) > 2300 * size:
                    f.write(json.dumps({'text': text[:int(8150 * size)]}, ensure_ascii=False) + '\n')
    with open(os.path.join(args.out, 'sources.json'), 'w', encoding='utf-8') as f:
        json.dump(sources, f, indent=1)
        f.write('\n')


if __name__ == '__main__':
    main()
