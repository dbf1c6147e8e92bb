#!/usr/bin/env python3
"""Compares `tamis tokenize` with the Hugging Face `tokenizers` library on random text and ids.

use:  python3 -m venv V && V/bin/pip install tokenizers==0.23.2
      V/bin/python tests/tools/tokenizer_diff.py --tamis build/release/tamis \\
          --tokenizer models/tamis-mini/tokenizer.json [--count 100000] [--seed 1]

Every tokenizer is tried as it is, with ignore_merges, and with GPT-2's and GLM-4's split rules. Strings go to
tamis in batches, joined by a special token that no string contains: text is never split or merged
across one. Ends with the number of mismatches; exit code 1 if there is any.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer

BATCH = 2000
GLM4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
ALPHABETS = [
    [chr(c) for c in range(32, 127)],
    list("aAbBzZ  \n\r\t'.,!?-_^0123456789"),
    list("  \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2009\u2028\u2029\u202f\u205f\u3000\u180e\u200b\ufeffa.1"),
    list("中文字日本語かなカナー・゠ヿ゛゙、。「」一龥龦〇々\u3040\u3097 a1"),
    list("e\u0301\u0300\u0323a\u20d0\u0903 .1\n"),
    list("'sS'tT're've'm'll'dD'ſ’s "),
    list("½²³①Ⅷ٣५๓𝟘 1a.\n"),
    list("😀👍🏽👨‍👩‍👧❤️🇯🇵€£¥™©±→∑« ».a"),
    list("\x00\x01\x1f\x7f\x80\xad\u200d\u2060\ue000\uffff\U0010ffff\U000e0001 a\n"),
    list("ابجد١٢٣،؟ עברית ไทย हिन्दी Ελλ Привет ñßøĳ "),
    # Unicode 15, 15.1 and 16 added these; an older table calls them unassigned.
    list("\U00031350\U000323af\U0002ebf0\U00010d40\U00010d4a\U0001e4d0\u1c89\u2ffc\u31ef\u0897 a1."),
]


def random_string(rng, pieces):
    kind = rng.randrange(len(ALPHABETS) + 4)
    size = rng.choice([1, 2, 3, 5, 8, 13, 21, 60])
    if kind < len(ALPHABETS):
        return "".join(rng.choice(ALPHABETS[kind]) for _ in range(size))
    if kind == len(ALPHABETS):
        return "".join(random_char(rng) for _ in range(size))
    if kind == len(ALPHABETS) + 1:
        return "".join(rng.choice(rng.choice(ALPHABETS)) for _ in range(size))
    if kind == len(ALPHABETS) + 2:
        return rng.choice(rng.choice(ALPHABETS)) * rng.choice([1, 7, 100, 300])
    return "".join(rng.choice([rng.choice(pieces), random_char(rng), " "]) for _ in range(size))


def random_char(rng):
    while True:
        code = rng.randrange(rng.choice([0x250, 0x3100, 0x10000, 0x20000, 0x110000]))
        if not 0xD800 <= code < 0xE000:
            return chr(code)


def variants(source):
    spec = json.loads(source)
    yield "as it is", spec
    spec = json.loads(source)
    spec["model"]["ignore_merges"] = True
    yield "ignore_merges", spec
    spec = json.loads(source)
    spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                             "use_regex": True}
    yield "gpt2", spec
    spec = json.loads(source)
    split_step = {"type": "Split", "pattern": {"Regex": GLM4}, "behavior": "Isolated",
                  "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split_step, byte_level]}
    yield "glm4", spec


def tamis(options, path, text, *flags):
    done = subprocess.run([options.tamis, "tokenize", "-m", path, *flags], input=text.encode(),
                          stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


def compare_encode(options, path, hf, separator, strings):
    separator_id = hf.token_to_id(separator)
    joined = separator.join(strings)
    wanted = hf.encode(joined, add_special_tokens=False).ids
    found = json.loads(tamis(options, path, joined))
    if wanted == found:
        return 0
    bad = 0
    for text, w, f in zip(strings, split(wanted, separator_id), split(found, separator_id)):
        if w != f:
            bad += 1
            print(f"encode {text!r}\n  wanted {w}\n  found  {f}")
    return max(bad, 1)


def split(ids, separator):
    parts = [[]]
    for i in ids:
        if i == separator:
            parts.append([])
        else:
            parts[-1].append(i)
    return parts


def compare_decode(options, path, hf, ids):
    bad = 0
    for flags, skip in (((), False), (("--skip-special",), True)):
        wanted = hf.decode(ids, skip_special_tokens=skip)
        if wanted != tamis(options, path, json.dumps(ids), "--decode", *flags):
            bad += 1
            print(f"decode (skip_special {skip}) of {ids[:40]}... differs")
    return bad


def run(options, name, spec):
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/tokenizer.json"
        pathlib.Path(path).write_text(json.dumps(spec))
        hf = Tokenizer.from_file(path)
        added = [a["content"] for a in spec["added_tokens"]]
        separator = added[0]
        pieces = added[1:] + [a[:-1] for a in added] + [a[1:] for a in added]
        known = list(hf.get_vocab(with_added_tokens=True).values())
        bad = count = 0
        while count < options.count:
            strings = [random_string(rng, pieces) for _ in range(BATCH)]
            strings = [s for s in strings if separator not in s]
            count += len(strings)
            bad += compare_encode(options, path, hf, separator, strings)
            bad += compare_decode(options, path, hf, rng.choices(known, k=BATCH))
    print(f"{options.tokenizer} ({name}): {count} strings, {bad} mismatches", flush=True)
    return bad


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tamis", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--count", type=int, default=100000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    source = pathlib.Path(options.tokenizer).read_text()
    return 1 if sum(run(options, name, spec) for name, spec in variants(source)) else 0


if __name__ == "__main__":
    sys.exit(main())
