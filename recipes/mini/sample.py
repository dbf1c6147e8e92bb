#!/usr/bin/env python3
"""A part of the text that recipes/mini/text.py wrote, as large as could be taken to the machine.

  recipes/mini/sample.py TEXT OUT [--prose 48.6] [--other 35.4] [--code 2.2]

Of packages in WHOLE every file; of those in MORE that share of the files, by chance but always the same; of the
others of their kind as large a share as fits, the same for all. sources.json has what is left of each package.
"""
import argparse
import json
import os
import random

WHOLE = {
    'prose': '''postgresql-doc-15 sqlite3-doc python-django-doc apache2-doc debconf-doc mandoc ncurses-doc openssh-client
        openssh-server sudo tmux tcpdump unbound nsd opensmtpd libbsd-dev libarchive-dev lua5.4 varnish-doc lighttpd-doc slapd
        heimdal-docs python-mako-doc python-jinja2-doc python-setuptools-doc'''.split(),
    'other': '''apt apt-doc bash bash-doc bsdextrautils coreutils debhelper debian-faq debian-kernel-handbook debian-policy
        debian-reference-en debmake-doc developers-reference devscripts dpkg dpkg-dev e2fsprogs findutils gawk git-buildpackage
        git-doc gnupg grep harden-doc installation-guide-amd64 iproute2 lintian maint-guide make manpages manpages-dev mount
        nftables passwd po-debconf procps reprepro rsync sbuild schroot screen sed strace systemd tar util-linux vim-doc
        wget'''.split()}
MORE = {
    'prose': {'python3.11-doc': 0.8, 'perl-doc': 0.7, 'libboost1.74-doc': 0.7, 'cmake-doc': 0.5, 'libssl-doc': 0.6,
              'tcl8.6-doc': 0.7, 'libcurl4-doc': 0.7, 'llvm-14-doc': 0.5, 'clang-14-doc': 0.6, 'libx11-doc': 0.5,
              'erlang-doc': 0.4, 'dpdk-doc': 0.25, 'rust-doc': 0.3},
    'other': {'libstdc++-12-doc': 0.8}}
LESS = 0.74  # all of MORE times this
LEAST = 0.05


def chosen(domain, names, sizes, limit):
    shares = [1 if n in WHOLE[domain] else MORE[domain][n] * LESS if n in MORE[domain] else None for n in names]
    sure = sum(s * x for s, x in zip(sizes, shares) if x is not None)
    rest = sum(s for s, x in zip(sizes, shares) if x is None)
    share = max(LEAST, min(1, (limit - sure) / rest))
    rng = random.Random(domain)
    return [i for i, x in enumerate(shares) if rng.random() < (share if x is None else x)]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('text')
    p.add_argument('out')
    p.add_argument('--prose', type=float, default=48.6, help='megabytes, about')
    p.add_argument('--other', type=float, default=35.4)
    p.add_argument('--code', type=float, default=2.2)
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    with open(os.path.join(args.text, 'sources.json'), encoding='utf-8') as f:
        sources = json.load(f)
    for s in sources['sources']:
        s.update(bytes=0, all_files=s['files'], files=0)
    for file in sorted(os.listdir(args.text)):
        if not file.endswith('.jsonl'):
            continue
        domain = file[:-6]
        with open(os.path.join(args.text, file), encoding='utf-8') as f:
            texts = [json.loads(line)['text'].replace('\f', '\n') for line in f]
        sizes = [len(t.encode()) for t in texts]
        owners = [s for s in sources['sources'] if s['domain'] == domain for _ in range(s['all_files'])]
        if domain == 'code':
            rng, share = random.Random(domain), args.code * 1e6 / sum(sizes)
            kept = [i for i in range(len(texts)) if share >= 1 or rng.random() < share]
        elif domain in WHOLE:
            kept = chosen(domain, [s['package'] for s in owners], sizes, 1e6 * getattr(args, domain))
        else:
            kept = range(len(texts))
        with open(os.path.join(args.out, file), 'w', encoding='utf-8') as f:
            for i in kept:
                f.write(json.dumps({'text': texts[i]}, ensure_ascii=False) + '\n')
                if owners:
                    owners[i]['bytes'] += sizes[i]
                    owners[i]['files'] += 1
        print(f'{domain:26} {len(kept):5} of {len(texts)} files {sum(sizes[i] for i in kept) / 1e6:7.2f} MB')
    with open(os.path.join(args.out, 'sources.json'), 'w', encoding='utf-8') as f:
        json.dump(sources, f, indent=1)
        f.write('\n')


if __name__ == '__main__':
    main()
