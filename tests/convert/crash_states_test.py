#!/usr/bin/env python3
"""What a power loss or a failing disk leaves behind: crash_states_test.py TAMIS SOURCE_DIR SHIM

A conversion is recorded call by call (io_shim.cpp). From the record this program builds what a disk
may hold after a loss of power at any point: bytes and lengths that no fsync covered may be there or
not, in pages of 4 KiB; names that no fsync of the folder covered may be there or not, in any
combination. In none of them may a final name hold anything but a whole file, and a folder that
can be opened must be the whole conversion.
"""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TAMIS, SOURCE, SHIM = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
MODEL = SOURCE / "tests/golden/model/b_fp32_sparse_yarn"
STATES = 10_000
PAGE = 4096


def convert(out, **environment):
    return subprocess.run([TAMIS, "convert", str(MODEL), str(out), "--model-parallel", "2"],
                          capture_output=True, text=True,
                          env={**os.environ, "LD_PRELOAD": SHIM, "TAMIS_IO_FOLDER": str(out),
                               **environment})


def contents(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def is_temporary(name):
    return ".tmp" in name


class File:
    """An inode: what was written, and how much of it is surely on the disk."""

    def __init__(self):
        self.data, self.durable = bytearray(), 0


class Disk:
    """The output folder while the recorded calls happen."""

    def __init__(self):
        self.names = {}      # what a program sees
        self.durable = {}    # what an fsync of the folder covered
        self.pending = []    # changes of names since then: (name, file or None)

    def apply(self, call, folder, blob):
        kind, rest = call.split(" ", 1)
        if kind == "open":
            if rest not in self.names:
                self.change(rest, File())
        elif kind == "truncate":
            size, path = rest.split(" ", 1)
            file = self.names[path]
            del file.data[int(size):]
            file.durable = min(file.durable, int(size))
        elif kind == "write":
            size, path = rest.split(" ", 1)
            self.names[path].data += blob.read(int(size))
        elif kind == "fsync" and rest == folder:
            self.durable, self.pending = dict(self.names), []
        elif kind == "fsync":
            self.names[rest].durable = len(self.names[rest].data)
        elif kind == "rename":
            old, new = rest.split("\t")
            file = self.names[old]
            self.change(old, None)
            self.change(new, file)
        elif kind == "unlink":
            self.change(rest, None)

    def change(self, name, file):
        self.pending.append((name, file))
        if file is None:
            self.names.pop(name, None)
        else:
            self.names[name] = file

    def after_power_loss(self, choose):
        """name -> bytes of one state that the disk may be in."""
        names = dict(self.durable)
        for name, file in self.pending:
            if choose.random() < 0.5:
                if file is None:
                    names.pop(name, None)
                else:
                    names[name] = file
        return {Path(name).name: torn(file, choose) for name, file in names.items()}


def torn(file, choose):
    length = file.durable
    if len(file.data) > length and choose.random() < 0.7:
        length = choose.randint(length, len(file.data))
    data = bytearray(file.data[:length])
    for page in range(file.durable // PAGE, (length + PAGE - 1) // PAGE):
        if choose.random() < 0.3:
            begin = max(page * PAGE, file.durable)
            data[begin:(page + 1) * PAGE] = bytes(min((page + 1) * PAGE, length) - begin)
    return bytes(data)


class CrashStates(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = Path(tempfile.mkdtemp(prefix="tamis-crash-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.out, log = cls.folder / "out", cls.folder / "log"
        done = convert(cls.out, TAMIS_IO_LOG=str(log))
        assert done.returncode == 0, done.stderr
        cls.calls = log.read_text().splitlines()
        cls.blob = log.with_suffix(".bytes")
        cls.final = contents(cls.out)

    def versions(self, calls):
        """Every content that a name ever had when it was committed."""
        found, disk = {}, Disk()
        with open(self.blob, "rb") as blob:
            for call in calls:
                disk.apply(call, str(self.out), blob)
                if call.startswith("rename "):
                    new = call.split("\t")[1]
                    found.setdefault(Path(new).name, []).append(bytes(disk.names[new].data))
        return found

    def states(self, calls, count):
        """Random crash points; at each one some states. Yields name -> bytes."""
        choose = random.Random(1)
        each = max(count // len(calls), 1) + 1
        disk = Disk()
        with open(self.blob, "rb") as blob:
            for call in calls:
                disk.apply(call, str(self.out), blob)
                for _ in range(each):
                    yield disk.after_power_loss(choose)

    def faults(self, state, versions):
        """What is wrong with a state, as a list of texts."""
        wrong = []
        for name, data in state.items():
            if not is_temporary(name) and data not in versions[name]:
                wrong.append(f"{name}: {len(data)} bytes that were never its whole content")
        if "config.json" in state:  # can be opened
            wrong += [f"config.json is there, {n} is not" for n in self.final if n not in state]
        if "tamis-convert.json" in state and not wrong:
            record = json.loads(state["tamis-convert.json"])
            wrong += [f"{n} counts as finished and is not there"
                      for n in record["finished"] if n not in state]
        return wrong

    def test_the_record_is_the_run(self):
        last = {name: found[-1] for name, found in self.versions(self.calls).items()}
        self.assertEqual(last, self.final)
        self.assertGreater(len(self.calls), 30)

    def test_no_state_is_wrong(self):
        versions, seen, distinct = self.versions(self.calls), 0, set()
        for state in self.states(self.calls, STATES):
            self.assertEqual(self.faults(state, versions), [])
            seen += 1
            key = hashlib.sha1()
            for name in sorted(state):
                key.update(name.encode() + hashlib.sha1(state[name]).digest())
            distinct.add(key.digest())
        self.assertGreaterEqual(seen, STATES)
        self.assertGreater(len(distinct), STATES // 20)

    def test_the_search_sees_a_missing_fsync(self):
        # A control: without the files' or the folder's fsync wrong states must turn up.
        versions = self.versions(self.calls)
        of_files = [c for c in self.calls if not (c.startswith("fsync ") and
                                                  c != f"fsync {self.out}")]
        of_folder = [c for c in self.calls if c != f"fsync {self.out}"]
        for calls in (of_files, of_folder):
            self.assertLess(len(calls), len(self.calls))
            self.assertTrue(any(self.faults(s, versions) for s in self.states(calls, 2000)))

    def test_goes_on_after_a_power_loss(self):
        states = [s for s in self.states(self.calls, 2 * len(self.calls))]
        for number, state in enumerate(random.Random(2).sample(states, 40)):
            out = self.folder / f"again{number}"
            out.mkdir()
            for name, data in state.items():
                (out / name).write_bytes(data)
            done = convert(out)
            self.assertEqual(done.returncode, 0, done.stderr)
            after = {n: d for n, d in contents(out).items() if not is_temporary(n)}
            self.assertEqual(after, self.final)
            shutil.rmtree(out)

    def test_every_failing_call(self):
        # The errors a disk can give, at every call: reported, nothing half-written, and the next
        # run finishes. EINTR and short writes are no errors.
        versions = self.versions(self.calls)
        counts = {kind: sum(c.startswith(kind + " ") for c in self.calls)
                  for kind in ("open", "write", "fsync", "rename")}
        for kind, errors in (("write", ("ENOSPC", "EIO")), ("fsync", ("EIO",)),
                             ("rename", ("ENOENT",)), ("open", ("ENOSPC",)),
                             ("write", ("EINTR", "short"))):
            for error in errors:
                for k in range(1, counts[kind] + 1):
                    out = self.folder / "failing"
                    done = convert(out, TAMIS_IO_FAIL=f"{kind}:{k}:{error}")
                    with self.subTest(f"{kind} {k} {error}"):
                        harmless = error in ("EINTR", "short")
                        self.assertEqual(done.returncode, 0 if harmless else 3, done.stderr)
                        if not harmless:
                            self.assertIn(str(out), done.stderr)
                        for name, data in contents(out).items():
                            if not is_temporary(name):
                                self.assertIn(data, versions[name])
                        self.assertEqual(convert(out).returncode, 0)
                        after = {n: d for n, d in contents(out).items() if not is_temporary(n)}
                        self.assertEqual(after, self.final)
                    shutil.rmtree(out)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
