#!/usr/bin/env python3
"""Text for the small model of docs/mini-training.md, from Debian packages under permissive licences.

  apt-get download PACKAGE... ; recipes/mini/text.py OUT --keep-out EVAL.txt... -- PACKAGE.deb...

writes what bench/parity_text.py writes, from more packages of documentation. A file that has 13 words
in a row of a --keep-out text is not used at all, and no line of such a text is kept.
"""
import argparse
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '../../bench'))
import parity_text  # noqa: E402

SPHINX = ['/html/']
# Package: (domain, licence, parts of paths that are taken, megabytes at most).
PACKAGES = {name: (*entry, 2.5 if entry[0] == 'code' else 6.0) for name, entry in parity_text.PACKAGES.items()}
PACKAGES.update({
    'ant-doc': ('prose', 'Apache-2.0', ['/manual/'], 2.0),
    'barbican-doc': ('prose', 'Apache-2.0', SPHINX, 1.0),
    'cinder-doc': ('prose', 'Apache-2.0', SPHINX, 2.0),
    'clang-14-doc': ('prose', 'Apache-2.0 with LLVM exception', SPHINX, 2.5),
    'cmake-doc': ('prose', 'BSD-3-Clause', SPHINX, 3.0),
    'cython-doc': ('prose', 'Apache-2.0', SPHINX, 1.0),
    'debconf-doc': ('prose', 'BSD-2-Clause', [''], 1.0),
    'designate-doc': ('prose', 'Apache-2.0', SPHINX, 1.0),
    'docutils-doc': ('prose', 'public domain, BSD-2-Clause', [''], 2.0),
    'dpdk-doc': ('prose', 'BSD-3-Clause', ['/guides/', '/prog_guide/', '/howto/', '/sample_app_ug/', '/rel_notes/'], 3.0),
    'ghc-doc': ('prose', 'BSD-3-Clause', ['/users_guide/'], 2.5),
    'glance-doc': ('prose', 'Apache-2.0', SPHINX, 1.5),
    'heat-doc': ('prose', 'Apache-2.0', SPHINX, 1.5),
    'heimdal-docs': ('prose', 'BSD-3-Clause', [''], 1.0),
    'ironic-doc': ('prose', 'Apache-2.0', SPHINX, 2.0),
    'keystone-doc': ('prose', 'Apache-2.0', SPHINX, 1.5),
    'libarchive-dev': ('prose', 'BSD-2-Clause', ['/man/'], 1.0),
    'libboost1.74-doc': ('prose', 'BSL-1.0', ['/doc/'], 5.0),
    'libbsd-dev': ('prose', 'BSD-3-Clause', ['/man/'], 1.0),
    'libcurl4-doc': ('prose', 'curl', ['/man/', '/doc/'], 2.0),
    'libpcap-dev': ('prose', 'BSD-3-Clause', ['/man/'], 1.0),
    'libx11-doc': ('prose', 'MIT', ['/man/', '/doc/'], 2.5),
    'lighttpd-doc': ('prose', 'BSD-3-Clause', [''], 1.0),
    'llvm-14-doc': ('prose', 'Apache-2.0 with LLVM exception', SPHINX, 4.0),
    'lua5.4': ('prose', 'MIT', [''], 1.0),
    'mandoc': ('prose', 'ISC', ['/man/'], 1.0),
    'manila-doc': ('prose', 'Apache-2.0', SPHINX, 1.0),
    'ncurses-doc': ('prose', 'MIT', [''], 2.0),
    'neutron-doc': ('prose', 'Apache-2.0', SPHINX, 2.5),
    'nova-doc': ('prose', 'Apache-2.0', SPHINX, 2.5),
    'nsd': ('prose', 'BSD-3-Clause', ['/man/'], 1.0),
    'ntpsec-doc': ('prose', 'NTP', [''], 1.5),
    'octavia-doc': ('prose', 'Apache-2.0', SPHINX, 1.0),
    'openmpi-doc': ('prose', 'BSD-3-Clause', ['/man/'], 1.5),
    'opensmtpd': ('prose', 'ISC', ['/man/'], 1.0),
    'openssh-client': ('prose', 'BSD-2-Clause', ['/man/'], 1.0),
    'openssh-server': ('prose', 'BSD-2-Clause', ['/man/'], 1.0),
    'openvswitch-doc': ('prose', 'Apache-2.0', [''], 2.5),
    'perl-doc': ('prose', 'Artistic (or GPL-1+)', ['/pod/', '/perl/'], 5.0),
    'python-attr-doc': ('prose', 'MIT', SPHINX, 1.0),
    'python-babel-doc': ('prose', 'BSD-3-Clause', SPHINX, 1.0),
    'python-cffi-doc': ('prose', 'MIT', SPHINX, 1.0),
    'python-cryptography-doc': ('prose', 'Apache-2.0 or BSD-3-Clause', SPHINX, 1.0),
    'python-flask-doc': ('prose', 'BSD-3-Clause', SPHINX, 1.0),
    'python-gevent-doc': ('prose', 'MIT', SPHINX, 1.0),
    'python-jinja2-doc': ('prose', 'BSD-3-Clause', SPHINX, 1.0),
    'python-mako-doc': ('prose', 'MIT', SPHINX, 1.0),
    'python-openstackclient-doc': ('prose', 'Apache-2.0', SPHINX, 1.5),
    'python-oslo.config-doc': ('prose', 'Apache-2.0', SPHINX, 1.0),
    'python-pandas-doc': ('prose', 'BSD-3-Clause', ['/user_guide/', '/getting_started/', '/whatsnew/', '/development/'], 2.5),
    'python-pytest-doc': ('prose', 'MIT', SPHINX, 1.5),
    'python-setuptools-doc': ('prose', 'MIT', SPHINX, 1.0),
    'python-sqlalchemy-doc': ('prose', 'MIT', SPHINX, 3.0),
    'python-tornado-doc': ('prose', 'Apache-2.0', SPHINX, 1.0),
    'python-werkzeug-doc': ('prose', 'BSD-3-Clause', SPHINX, 1.0),
    'rust-doc': ('prose', 'MIT or Apache-2.0',
                 ['/book/', '/reference/', '/nomicon/', '/cargo/', '/rustc/', '/edition-guide/', '/rust-by-example/',
                  '/rustdoc/', '/unstable-book/', '/embedded-book/', '/clippy/'], 6.0),
    'scheme48-doc': ('prose', 'BSD-3-Clause', [''], 1.0),
    'slapd': ('prose', 'OLDAP-2.8', ['/man/'], 1.0),
    'sphinx-doc': ('prose', 'BSD-2-Clause', SPHINX, 2.0),
    'sudo': ('prose', 'ISC', ['/man/'], 1.0),
    'tcpdump': ('prose', 'BSD-3-Clause', ['/man/'], 1.0),
    'tk8.6-doc': ('prose', 'TCL', ['/man/'], 2.0),
    'tmux': ('prose', 'ISC', ['/man/'], 1.0),
    'tomcat10-docs': ('prose', 'Apache-2.0', [''], 2.0),
    'twisted-doc': ('prose', 'MIT', ['/core/', '/web/', '/words/', '/names/', '/mail/', '/conch/', '/howto/', '/historic/'], 2.0),
    'unbound': ('prose', 'BSD-3-Clause', ['/man/'], 1.0),
    'varnish-doc': ('prose', 'BSD-2-Clause', [''], 1.5),
    'xorg-docs': ('prose', 'MIT', [''], 3.0),
    'zsh-doc': ('prose', 'MIT-Modern-Variant', [''], 3.0),
})
PROSE = re.compile(r'\.(html?|txt|rst|pod|md)(\.gz)?$|/man/man[0-9a-z]+/')
LEFT_OUT = re.compile(r'genindex|_modules/|/locale/|search|/_static/|py-modindex|/print\.html|/all\.html|/api/|/man/[a-z][a-z]'
                      r'(_[A-Z]+)?/|copyright|changelog|README\.Debian|/examples/|/_sources/|/contributor/')
WORDS = 13
COMMON = set('''the of and to a in is that for it be as are or by with this not you if on from an can at which will have has
when use was its but all may than more then only other these they one no there'''.split())


def words(text):
    return re.findall(r'[A-Za-z0-9_]+', text)


def grams(text):
    w = words(text)
    return {' '.join(w[i:i + WORDS]) for i in range(len(w) - WORDS + 1)}


def pod(text):
    text = re.sub(r'^=(head\d|item|over|back|cut|pod|encoding|for|begin|end)\b *', '', text, flags=re.M)
    return re.sub(r'[BCFILSX]<+ ?([^<>]*?) ?>+', r'\1', text)


def text_of(path, own):
    if '/man/man' in own or '.htm' in own:
        return parity_text.text_of(path)
    text = parity_text.text_of(path)
    return pod(text) if '.pod' in own else text


def digest(text):
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def share_of_common_words(text):
    found = text.lower().split()
    return sum(w in COMMON for w in found) / max(1, len(found))


def part(texts, megabytes):
    """The first ones, as many as fit."""
    kept, left = [], megabytes * 1e6
    for text in texts:
        left -= len(text.encode())
        if left < 0:
            break
        kept.append(text)
    return kept


def clean(text, seen):
    kept = []
    for line in text.splitlines():
        line = line.rstrip()
        stripped = line.strip()
        if len(stripped) >= parity_text.SHORTEST:
            key = digest(stripped)
            if key in seen:
                continue
            seen.add(key)
        if line or (kept and kept[-1]):
            kept.append(line)
    return '\n'.join(kept).strip() + '\n'


def package_name(package):
    return os.path.basename(package).split('_')[0]


def doubts(folder):
    """Licences in a package's copyright file that ask for the same terms, often of its documentation alone."""
    found = set()
    for path, _, names in os.walk(os.path.join(folder, 'usr/share/doc')):
        if 'copyright' in names and not os.path.islink(os.path.join(path, 'copyright')):
            with open(os.path.join(path, 'copyright'), encoding='utf-8', errors='replace') as f:
                found |= set(re.findall(r'CC-BY-SA|ShareAlike|GFDL', f.read()))
    return sorted(found)


def extract(job):
    """Files of a package by the hash of their paths: whether held out, and the text; how many are not used; doubts."""
    package, kept_out = job
    domain, _, parts, most = PACKAGES[package_name(package)]
    out, size, dropped = [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(['dpkg', '-x', package, folder], check=True)
        doubtful = doubts(folder)
        paths = [os.path.join(d, f) for d, _, names in os.walk(folder) for f in names]
        for path in sorted(paths, key=lambda p: digest(p[len(folder):])):
            own = path[len(folder):]
            if os.path.islink(path) or not any(part in own for part in parts) or parity_text.LEFT_OUT.search(own):
                continue
            if domain == 'code':
                wanted = own.endswith(parity_text.CODE)
            else:
                wanted = PROSE.search(own) and not LEFT_OUT.search(own)
            if not wanted:
                continue
            if size > 1.5 * most * 1e6:  # lines that stood elsewhere are left out later
                break
            text = text_of(path, own)
            if kept_out and not kept_out.isdisjoint(grams(text)):
                dropped += 1
                continue
            out.append((int.from_bytes(digest(own), 'big') % parity_text.HELD_OUT == 0, text))
            size += len(text.encode())
    return out, dropped, doubtful


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out')
    parser.add_argument('--keep-out', action='append', default=[], metavar='FILE', help='text that must stay unseen')
    parser.add_argument('--prose', type=float, default=70, help='megabytes of prose to learn from, at most')
    parser.add_argument('--code', type=float, default=2.6, help='of code')
    parser.add_argument('--held-out', type=float, default=1.15, help='of held-out prose')
    parser.add_argument('--jobs', type=int, default=os.cpu_count())
    parser.add_argument('packages', nargs='+', metavar='PACKAGE.deb')
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    seen, sources, documents, kept_out = set(), [], {}, set()
    for name in args.keep_out:
        with open(name, encoding='utf-8') as f:
            text = f.read()
        kept_out |= grams(text)
        seen.update(digest(line.strip()) for line in text.splitlines() if len(line.strip()) >= parity_text.SHORTEST)
    dropped = 0
    packages = sorted(args.packages)
    for package in packages:
        if package_name(package) not in PACKAGES:
            sys.exit(f'{package}: no licence is noted for it; known are {", ".join(PACKAGES)}')
    with multiprocessing.Pool(args.jobs) as pool:
        for package, (files, unused, doubtful) in zip(packages, pool.imap(extract, [(p, kept_out) for p in packages])):
            name, version = os.path.basename(package).split('_')[:2]
            domain, licence, _, most = PACKAGES[name]
            dropped += unused
            size, count = 0, 0
            for held_out, text in files:
                if size > most * 1e6:
                    break
                text = clean(text, seen)
                if len(text) < 400:
                    continue
                documents.setdefault(domain + ('-held-out' if held_out else ''), []).append(text)
                if not held_out:
                    size += len(text.encode())
                    count += 1
            sources.append({'package': name, 'version': version.replace('%3a', ':'), 'domain': domain,
                            'licence': licence, 'bytes': size, 'files': count})
            print(f'{name:26} {count:5} files {size / 1e6:7.2f} MB' +
                  (f'   its copyright file has {", ".join(doubtful)}: read it' if doubtful else ''), flush=True)
    print(f'{dropped} files with words of the texts to keep out')
    # Of prose what reads most like it, in its order; of the rest what comes first by hash.
    ranked = sorted(documents['prose'], key=lambda t: -share_of_common_words(t))
    chosen = set(part(ranked, args.prose))
    documents['prose'] = [t for t in documents['prose'] if t in chosen]
    documents['code'] = part(sorted(documents['code'], key=digest), args.code)
    for domain, size in (('prose', 3.8), ('code', 3.0)):  # characters of a token
        documents[domain + '-eval'] = [t[:int(8150 * size)] for t in documents.get(domain + '-held-out', [])
                                       if len(t) > 2300 * size]
    documents['prose-eval'] = part(sorted(documents['prose-eval'], key=digest), args.held_out)
    documents['prose-held-out'] = documents['prose-eval']
    for name, texts in documents.items():
        with open(os.path.join(args.out, name + '.jsonl'), 'w', encoding='utf-8') as f:
            for text in texts:
                f.write(json.dumps({'text': text}, ensure_ascii=False) + '\n')
        print(f'{name:26} {len(texts):5} files {sum(len(t.encode()) for t in texts) / 1e6:7.2f} MB')
    with open(os.path.join(args.out, 'sources.json'), 'w', encoding='utf-8') as f:
        json.dump(sources, f, indent=1)
        f.write('\n')


if __name__ == '__main__':
    main()
