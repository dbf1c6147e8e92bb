#!/usr/bin/env python3
"""Text for the small model of docs/mini-training.md, from Debian packages of documentation.

  apt-get download PACKAGE... ; recipes/mini/text.py OUT --keep-out CLEAN.txt --judge PUBLIC.txt -- PACKAGE.deb...

writes OUT/prose.jsonl and code.jsonl, of packages under permissive licences, other.jsonl, of packages under
other free ones (GPL, LGPL, GFDL, MPL, OPL), a held-out part of each, what long files of these begin with
(-eval.jsonl), and sources.json. A file that has 13 words in a row of --keep-out is not used, nor one that
--judge consists of: more than 30 % of its own 13-word sequences, or more than 100 of them, stand there.
Whole copies are left out, and lines that 40 files had before. Pages become lines as in the text that the
bundled model learned: a paragraph a line, # before headings, "- " before items.
"""
import argparse
import collections
import hashlib
import html
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
# Packages under other free licences, in the same form.
MAN, HTML = ['/man/man'], ['.htm']
OTHER = {
    'apt': ('GPL-2+', MAN, 1.0),
    'apt-doc': ('GPL-2+', ['.html/', '.text'], 1.0),
    'bash': ('GPL-3+', MAN, 1.0),
    'bash-doc': ('GPL-3+, GFDL-1.3', ['bashref.html'], 1.0),
    'bind9-doc': ('MPL-2.0', HTML, 1.5),
    'binutils': ('GPL-3+, GFDL-1.3', MAN, 1.0),
    'bsdextrautils': ('GPL-2+, BSD', MAN, 1.0),
    'coreutils': ('GPL-3+', MAN, 1.0),
    'cryptsetup-bin': ('GPL-2+', MAN, 1.0),
    'debhelper': ('GPL-2+', MAN, 1.0),
    'debian-faq': ('GPL-2+', ['/FAQ/'], 1.0),
    'debian-kernel-handbook': ('GPL-2+', HTML, 1.0),
    'debian-policy': ('GPL-2+', ['_sources/', 'policy.html/', 'fhs/', 'debconf', 'menu', 'perl'], 3.0),
    'debian-reference-en': ('GPL-2+', HTML, 3.0),
    'debmake-doc': ('MIT', ['.en.html'], 1.5),
    'developers-reference': ('GPL-2+', ['.html', '_sources/'], 2.0),
    'devscripts': ('GPL-2+', MAN, 1.5),
    'dpkg': ('GPL-2+', MAN, 1.0),
    'dpkg-dev': ('GPL-2+', MAN, 1.5),
    'e2fsprogs': ('GPL-2', MAN, 1.0),
    'emacs-common': ('GPL-3+', MAN, 0.5),
    'exim4-doc-html': ('GPL-2+', HTML, 2.0),
    'findutils': ('GPL-3+, GFDL-1.3', MAN, 1.0),
    'gawk': ('GPL-3+', MAN, 1.0),
    'git-buildpackage': ('GPL-2+', ['.html', '/man/man'], 1.5),
    'git-doc': ('GPL-2', ['.txt'], 4.0),
    'gnupg': ('GPL-3+', MAN, 1.0),
    'grep': ('GPL-3+', MAN, 0.5),
    'harden-doc': ('GPL-2+', ['/html/en'], 2.0),
    'imagemagick-6-doc': ('ImageMagick', HTML, 1.0),
    'installation-guide-amd64': ('GPL-2+', ['/en/'], 2.0),
    'iproute2': ('GPL-2', MAN, 1.0),
    'iptables': ('GPL-2', MAN, 1.0),
    'lintian': ('GPL-2+', ['/man/man', '.html'], 1.0),
    'linux-doc-6.1': ('GPL-2', ['/Documentation/'], 12.0),
    'libglib2.0-doc': ('LGPL-2.1+', HTML, 2.0),
    'libstdc++-12-doc': ('GPL-3+ with exception, GFDL-1.3', ['/html/manual/', '/man/man3/std'], 4.0),
    'lvm2': ('GPL-2', MAN, 1.0),
    'lxc': ('LGPL-2.1+', MAN, 1.0),
    'maint-guide': ('GPL-2+', ['.en.html'], 1.0),
    'make': ('GPL-3+', MAN, 0.5),
    'manpages': ('GPL-2+, BSD, MIT, Linux man-pages copyleft', MAN, 4.0),
    'manpages-dev': ('GPL-2+, BSD, MIT, Linux man-pages copyleft', MAN, 8.0),
    'mariadb-client': ('GPL-2', MAN, 1.5),
    'mercurial': ('GPL-2+', ['/man/man', '/doc/'], 1.5),
    'mount': ('GPL-2+', MAN, 1.0),
    'mutt': ('GPL-2+', ['/man/man', 'manual'], 1.0),
    'nftables': ('GPL-2', MAN, 1.0),
    'octave-doc': ('GPL-3+', HTML, 2.0),
    'passwd': ('BSD-3-Clause, GPL-2+', MAN, 1.0),
    'po-debconf': ('GPL-2+', MAN, 0.5),
    'postfix-doc': ('EPL-2.0 or IPL-1.0', ['.html'], 3.0),
    'procps': ('GPL-2+, LGPL-2.1+', MAN, 0.5),
    'qtbase5-doc-html': ('GFDL-1.3', HTML, 4.0),
    'reprepro': ('GPL-2', MAN, 0.5),
    'rsync': ('GPL-3+', MAN, 0.5),
    'sbuild': ('GPL-2+', MAN, 0.5),
    'schroot': ('GPL-3+', MAN, 0.5),
    'screen': ('GPL-3+', MAN, 0.5),
    'sed': ('GPL-3+', MAN, 0.5),
    'strace': ('LGPL-2.1+', MAN, 0.5),
    'systemd': ('LGPL-2.1+', MAN, 3.0),
    'tar': ('GPL-3+', MAN, 0.5),
    'util-linux': ('GPL-2+, BSD', MAN, 1.0),
    'valgrind': ('GPL-2+, GFDL-1.2', ['/man/man', '/html/'], 1.5),
    'vim-doc': ('Vim, OPL-1.0+', ['/vim/html/'], 10.0),
    'wget': ('GPL-3+', MAN, 0.5),
}
PACKAGES.update({name: ('other', *entry) for name, entry in OTHER.items()})
PROSE = re.compile(r'\.(html?|txt|text|rst|pod|md)(\.gz)?$|/man/man[0-9a-z]+/|\.html\.en$')
LEFT_OUT = re.compile(r'genindex|_modules/|/locale/|search|/_static/|py-modindex|/print\.html|/all\.html|/api/|/man/[a-z][a-z]'
                      r'(_[A-Z]+)?/|copyright|changelog|README\.Debian|/examples/|/contributor/|translations|vimindex|/tags\.html')
WORDS = 13
MOST_OWN, MOST_SHARE = 100, 0.3  # 13-word sequences of the judging text that a file may have, and their share of its own
MOST_FILES = 40                  # files that may have a line


def words(text):
    return re.findall(r'[A-Za-z0-9_]+', text)


def grams(text):
    w = words(text)
    return {' '.join(w[i:i + WORDS]) for i in range(len(w) - WORDS + 1)}


SKIPPED = re.compile(r'(?is)<(script|style|head|nav|footer)\b.*?</\1\s*>|<!--.*?-->|<a class="headerlink".*?</a>'
                     r'|<div class="related".*?</div>')
TAG = re.compile(r'<(/?)([A-Za-z][A-Za-z0-9]*)[^<>]*>')
BREAKS = {'p': '\n\n', 'li': '\n\n', 'tr': '\n\n', 'ul': '\n\n', 'ol': '\n\n', 'table': '\n\n', 'dl': '\n\n', 'div': '\n', 'br': '\n',
          'dt': '\n', 'dd': '\n', 'section': '\n', 'blockquote': '\n\n', 'pre': '\n'}


def from_html(raw):
    out, at, lists, pre = [], 0, [], 0
    raw = SKIPPED.sub('', raw)
    for tag in TAG.finditer(raw):
        text = raw[at:tag.start()]
        out.append(text if pre else re.sub(r'\s+', ' ', text))
        at = tag.end()
        end, name = tag.group(1), tag.group(2).lower()
        if name == 'pre':
            pre = max(0, pre - 1) if end else pre + 1
        if name in ('ul', 'ol'):
            if not end:
                lists.append(name)
            elif lists:
                lists.pop()
        if name in ('h1', 'h2', 'h3', 'h4', 'h5', 'h6'):
            out.append('\n\n' if end else '\n\n' + '#' * int(name[1]) + ' ')
        elif name == 'li' and not end and lists[-1:] == ['ul']:
            out.append('\n\n- \0')
        elif name in ('td', 'th'):
            out.append('   ' if end else '  ')
        elif name in BREAKS:
            out.append(BREAKS[name])
    out.append(re.sub(r'\s+', ' ', raw[at:]))
    text = re.sub(r'\0\s*', '', ''.join(out))
    return html.unescape(text).replace('\u00b6', '').replace('\u00a0', ' ')


def from_man(raw):
    """A paragraph a line; macros of fonts in line; no comments. Headings without quotes are those of every page."""
    raw = re.sub(r'\\f(\[[A-Z]*\]|\([A-Z]{2}|[A-Z0-9])|\\&|\\\||\\\^|\\s[-+]?\d|\\c$', '', raw, flags=re.M)
    raw = re.sub(r'\\\[(\w\w)\]', r'\\(\1', raw)
    for a, b in (('\\-', '-'), ('\\e', '\\'), ('\\(aq', "'"), ('\\(dq', '"'), ('\\ ', ' '), ('\\~', ' '), ('\\(bu', '-'), ('\\(co', '(C)'),
                 ('\\(lq', '"'), ('\\(rq', '"'), ('\\(em', '--'), ('\\(en', '-'), ('\\(oq', "'"), ('\\(cq', "'"), ('\\(ti', '~'), ('\\(ha', '^'),
                 ('\\*(lq', '"'), ('\\*(rq', '"'), ("\\'", "'"), ('\\`', '`'), ('\\(rs', '\\'), ('\\(mu', 'x'), ('\\(+-', '+-')):
        raw = raw.replace(a, b)
    out, fill, tagged = [''], True, False

    def arguments(text):
        return [a or b for a, b in re.findall(r'"((?:[^"]|"")*)"?|(\S+)', text)]

    def add(text):
        nonlocal tagged
        if not fill or tagged or out[-1] == '' or out[-1].endswith('\n'):
            out.append(text)
        else:
            out[-1] += ' ' + text
        tagged = False

    def line(*texts):
        out.extend([*texts, '\n'])

    for text in raw.splitlines():
        if text.startswith(('.\\"', "'\\\"", '\\"')):
            continue
        if not text.startswith(('.', "'")):
            if text.strip():
                add(text.rstrip() if not fill else text.strip())
            else:
                line('')
            continue
        name, _, rest = text[1:].strip().partition(' ')
        rest = re.sub(r'\\".*', '', rest).strip()
        if name in ('TH', 'Dt'):
            line(' '.join(arguments(rest)), '')
        elif name in ('SH', 'SS', 'Sh', 'Ss'):
            fill = True
            if name[1] == 'S' or rest.startswith('"') or rest != rest.upper():
                line('', ' '.join(arguments(rest)), '')
            else:
                line('')
        elif name in ('PP', 'P', 'LP', 'Pp', 'sp', 'HP'):
            line('')
        elif name == 'IP':
            line(*([' '.join(arguments(rest))] if rest else []))
        elif name in ('TP', 'TQ', 'It'):
            line(*([' '.join(arguments(rest))] if rest and name == 'It' else []))
            tagged = name != 'It'
            if tagged:
                out.append('\n')
        elif name in ('nf', 'EX', 'Bd', 'Vb'):
            line('')
            fill = False
        elif name in ('fi', 'EE', 'Ed', 'Ve'):
            line('')
            fill = True
        elif name in ('br', 'RS', 'RE'):
            out.append('\n')
        elif name in ('BR', 'RB', 'BI', 'IB', 'IR', 'RI'):
            add(''.join(arguments(rest)))
        elif name in ('B', 'I', 'SM', 'SB'):
            add(' '.join(arguments(rest)))
        elif name in ('Nm', 'Fl', 'Ar', 'Cm', 'Pa', 'Ic', 'Op', 'Nd', 'Xr', 'Em', 'Dv', 'Ev', 'Va', 'Li', 'Ql', 'Dq', 'Sq', 'Fn', 'Ft', 'Fa', 'In'):
            if rest:
                add(('- ' if name == 'Nd' else '-' if name == 'Fl' else '') + ' '.join(arguments(rest)))
        if fill and tagged and name in ('B', 'I', 'BR', 'RB', 'BI', 'IB', 'IR', 'RI'):
            out.append('\n')
    return '\n'.join(t for t in out if t != '\n')


def pod(text):
    text = re.sub(r'^=head(\d) *', lambda m: '#' * int(m.group(1)) + ' ', text, flags=re.M)
    text = re.sub(r'^=(item|over|back|cut|pod|encoding|for|begin|end)\b *', '', text, flags=re.M)
    return re.sub(r'[BCFILSX]<+ ?([^<>]*?) ?>+', r'\1', text)


def text_of(path, own):
    raw = parity_text.decoded(path, parity_text.LARGEST * (4 if '.htm' in own else 2))
    if '/man/man' in own:
        return from_man(raw)
    if '.htm' in own and '.txt' not in own:
        return from_html(raw)
    return pod(raw) if '.pod' in own else raw


def digest(text):
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def part(texts, megabytes):
    """The first ones, as many as fit."""
    kept, left = [], megabytes * 1e6
    for text in texts:
        left -= len(text.encode())
        if left < 0:
            break
        kept.append(text)
    return kept


def clean(text, files):
    """Without blank lines in a row and lines that many files had; counts those of this one."""
    kept, own = [], set()
    for line in text.splitlines():
        line = line.rstrip()
        stripped = line.strip()
        if len(stripped) > 3:
            key = digest(stripped)
            own.add(key)
            if files[key] >= MOST_FILES:
                continue
        if stripped or (kept and kept[-1]):
            kept.append(line)
    files.update(own)
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
    """Files of a package by path: whether held out, and the text; names of those not used, and why; doubts."""
    package, kept_out, judge = job
    domain, _, parts, most = PACKAGES[package_name(package)]
    out, size, dropped = [], 0, []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(['dpkg', '-x', package, folder], check=True)
        doubtful = doubts(folder)
        paths = [os.path.join(d, f) for d, _, names in os.walk(folder) for f in names]
        for path in sorted(paths, key=lambda p: digest(p[len(folder):])):
            own = path[len(folder):]
            if os.path.islink(path) or not any(part in own for part in parts):
                continue
            if domain == 'code':
                wanted = own.endswith(parity_text.CODE) and not parity_text.LEFT_OUT.search(own)
            else:
                wanted = PROSE.search(own) and not LEFT_OUT.search(own)
            if not wanted:
                continue
            if size > 1.2 * most * 1e6:  # copies and some lines are left out later
                break
            text = text_of(path, own)
            if len(text) < 400:
                continue
            found = grams(text)
            if not kept_out.isdisjoint(found):
                dropped.append((own, 'kept out', len(kept_out & found)))
                continue
            shared = len(judge & found)
            if shared > MOST_OWN or shared > MOST_SHARE * max(1, len(found)):
                dropped.append((own, 'judge', shared))
                continue
            out.append((own, int.from_bytes(digest(own), 'big') % parity_text.HELD_OUT == 0, text))
            size += len(text.encode())
    return sorted(out), dropped, doubtful


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out')
    parser.add_argument('--keep-out', required=True, metavar='FILE', help='text that must stay unseen')
    parser.add_argument('--judge', required=True, metavar='FILE', help='text whose own files must')
    parser.add_argument('--held-out', type=float, default=0.6, help='megabytes of held-out text, of each kind')
    parser.add_argument('--jobs', type=int, default=os.cpu_count())
    parser.add_argument('packages', nargs='+', metavar='PACKAGE.deb')
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    seen, files, sources, documents = set(), collections.Counter(), [], {}
    with open(args.keep_out, encoding='utf-8') as f:
        kept_out = grams(f.read())
    with open(args.judge, encoding='utf-8') as f:
        judge = grams(f.read())
    found, unused = {'prose': set(), 'other': set(), 'code': set()}, []
    packages = sorted(args.packages)
    for package in packages:
        if package_name(package) not in PACKAGES:
            sys.exit(f'{package}: no licence is noted for it; known are {", ".join(PACKAGES)}')
    with multiprocessing.Pool(args.jobs) as pool:
        for package, (texts, dropped, doubtful) in zip(packages, pool.imap(extract, [(p, kept_out, judge) for p in packages])):
            name, version = os.path.basename(package).split('_')[:2]
            domain, licence, _, most = PACKAGES[name]
            unused += [(name, *d) for d in dropped]
            size, count = 0, 0
            for own, held_out, text in texts:
                if size > most * 1e6:
                    break
                key = digest(' '.join(words(text)))
                if key in seen:
                    continue
                seen.add(key)
                text = clean(text, files)
                if len(text) < 400:
                    continue
                documents.setdefault(domain + ('-held-out' if held_out else ''), []).append(text)
                if not held_out:
                    found[domain] |= judge & grams(text)
                    size += len(text.encode())
                    count += 1
            sources.append({'package': name, 'version': version.replace('%3a', ':'), 'domain': domain,
                            'licence': licence, 'bytes': size, 'files': count})
            print(f'{name:26} {count:5} files {size / 1e6:7.2f} MB' +
                  (f'   its copyright file has {", ".join(doubtful)}' if doubtful else ''), flush=True)
    for why in ('kept out', 'judge'):
        print(f'{sum(u[2] == why for u in unused)} files not used: {why}')
    shares = {'prose': len(found['prose'] | found['code']) / len(judge),
              'all': len(found['prose'] | found['code'] | found['other']) / len(judge)}
    print('share of the sequences of the judging text:', shares)
    for domain, size in (('prose', 3.6), ('other', 3.5), ('code', 3.0)):  # characters of a token
        held = documents.get(domain + '-held-out', [])
        documents[domain + '-eval'] = part(sorted([t[:int(8150 * size)] for t in held if len(t) > 2300 * size], key=digest), args.held_out)
        documents[domain + '-held-out'] = part(sorted(held, key=digest), args.held_out)
    for name, texts in documents.items():
        with open(os.path.join(args.out, name + '.jsonl'), 'w', encoding='utf-8') as f:
            for text in texts:
                f.write(json.dumps({'text': text}, ensure_ascii=False) + '\n')
        print(f'{name:26} {len(texts):5} files {sum(len(t.encode()) for t in texts) / 1e6:7.2f} MB')
    with open(os.path.join(args.out, 'sources.json'), 'w', encoding='utf-8') as f:
        json.dump({'sources': sources, 'shares': shares, 'not_used': sorted(unused)}, f, indent=1)
        f.write('\n')


if __name__ == '__main__':
    main()
