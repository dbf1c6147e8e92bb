#!/usr/bin/env python3
"""tamis convert as a user meets it: convert_cli_test.py TAMIS SOURCE_DIR"""

import json
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TAMIS, SOURCE = sys.argv[1], Path(sys.argv[2])
MODEL = SOURCE / "models/tamis-mini"


def convert(*arguments, **options):
    return subprocess.run([TAMIS, "convert", *map(str, arguments)], capture_output=True, text=True,
                          **options)


def tensors(folder):
    """Name -> (dtype, shape, bytes) of all weight files of a folder, by a reader of its own."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        for name, entry in json.loads(data[8:8 + length]).items():
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                found[name] = (entry["dtype"], entry["shape"], data[begin:end])
    return found


class Convert(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="tamis-convert-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.out = self.folder / "out"

    def test_help(self):
        done = convert("--help")
        self.assertEqual(done.returncode, 0)
        for part in ("--model-parallel", "--to", "--difference-from", "--add", "Examples:",
                     "Exit codes:"):
            self.assertIn(part, done.stdout)

    def test_there_and_back(self):
        done = convert(MODEL, self.out, "--model-parallel", 2, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads(done.stdout)
        self.assertEqual((report["layout_in"], report["layout_out"], report["ranks"]),
                         ("huggingface", "per-rank", 2))
        self.assertEqual(report["files"], 2)
        self.assertEqual({p.name for p in self.out.glob("*.safetensors")},
                         {"model0-mp2.safetensors", "model1-mp2.safetensors"})
        done = convert(self.out, self.folder / "again")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(tensors(self.folder / "again"), tensors(MODEL))
        again = convert(self.out, self.folder / "again", "--json")
        self.assertEqual(json.loads(again.stdout)["files_resumed"], 1)

    def test_int4(self):
        done = convert(MODEL, self.out, "--to", "int4", "--json", "--manifest")
        self.assertEqual(done.returncode, 0, done.stderr)
        errors = json.loads(done.stdout)["errors"]
        self.assertEqual(errors["mlp.experts.up_proj.weight"]["tensors"], 48)
        for error in errors.values():
            self.assertTrue(0 < error["relative_rms"] < 0.12, error)
        config = json.loads((self.out / "config.json").read_text())
        self.assertEqual(config["quantization_config"],
                         {"quant_method": "tamis-int4", "group_size": 32})
        stored = tensors(self.out)
        name = "model.layers.0.self_attn.q_b_proj.weight"
        self.assertEqual(stored[name][:2], ("U8", [768, 64]))
        self.assertEqual(stored[name + "_scale"][:2], ("BF16", [768, 4]))
        # The first value of the first row, decoded by hand.
        low = stored[name][2][0] & 15
        scale = struct.unpack("<f", b"\0\0" + stored[name + "_scale"][2][:2])[0]
        want = struct.unpack("<f", b"\0\0" + tensors(MODEL)[name][2][:2])[0]
        self.assertLessEqual(abs((low - 16 if low > 7 else low) * scale - want), scale * 0.5001)
        index = json.loads((self.out / "model.safetensors.index.json").read_text())
        self.assertEqual(set(index["weight_map"]), set(stored))
        self.assertEqual(index["metadata"]["total_size"], sum(len(t[2]) for t in stored.values()))
        self.assertTrue((self.out / "MANIFEST.json").exists())
        # Results on stdout only: the notes and the progress are on stderr.
        self.assertEqual(done.stdout.count("\n{"), 0)

    def test_difference_and_back(self):
        # A variant of the bundled model: every BF16 weight of one matrix with its lowest bit flipped.
        name, variant = "model.layers.0.self_attn.o_proj.weight", self.folder / "variant"
        shutil.copytree(MODEL, variant)
        for path in variant.glob("*.safetensors"):
            data = bytearray(path.read_bytes())
            start = 8 + struct.unpack("<Q", data[:8])[0]
            entry = json.loads(data[8:start]).get(name)
            if entry:
                for at in range(start + entry["data_offsets"][0], start + entry["data_offsets"][1], 2):
                    data[at] ^= 1
                path.write_bytes(data)
        done = convert(variant, self.out, "--difference-from", MODEL, "--bits", 3, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        report = json.loads(done.stdout)
        self.assertEqual((report["layout_out"], report["tensors"]), ("difference", 2))
        self.assertEqual(list(report["errors"]), ["self_attn.o_proj.weight"])
        stored = tensors(self.out)
        self.assertEqual(stored[name][:2], ("U8", [256, 192]))
        done = convert(MODEL, self.folder / "again", "--add", self.out, "--manifest")
        self.assertEqual(done.returncode, 0, done.stderr)
        base, again = tensors(MODEL), tensors(self.folder / "again")
        self.assertEqual({n for n in base if base[n] != again[n]}, {name})
        # The last value of the last row by hand: a code in the row's highest 3 bits, the base's
        # value, one rounding to BF16 (both are near: the nearest of three neighbours).
        bf16 = lambda raw: struct.unpack("<f", b"\0\0" + raw)[0]
        scale = bf16(stored[name + "_scale"][2][-2:])
        want = bf16(base[name][2][-2:]) + (2 * (stored[name][2][-1] >> 5) + 1 - 8) * scale
        found = struct.unpack("<H", again[name][2][-2:])[0]
        near = {abs(bf16(struct.pack("<H", found + step)) - want): step for step in (-1, 0, 1)}
        self.assertEqual(near[min(near)], 0)
        self.assertTrue((self.folder / "again" / "MANIFEST.json").exists())
        # Of another base, nothing is written; a difference is no model.
        done = convert(variant, self.folder / "wrong", "--add", self.out)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("other weights", done.stderr)
        self.assertFalse((self.folder / "wrong").exists())
        (self.out / "tamis-convert.json").unlink()
        done = convert(self.out, self.folder / "wrong", "--to", "int8")
        self.assertEqual(done.returncode, 1)
        self.assertIn("--add", done.stderr)

    def test_wrong_input_is_1(self):
        done = convert(MODEL, self.out, "--model-parallel", 3)
        self.assertEqual(done.returncode, 1)
        self.assertIn("attention heads", done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertFalse(self.out.exists())
        self.assertEqual(convert(self.folder / "nothing", self.out, "--to", "fp8").returncode, 1)
        self.out.mkdir()
        (self.out / "thesis.txt").write_text("mine")
        done = convert(MODEL, self.out, "--to", "fp8")
        self.assertEqual(done.returncode, 1)
        self.assertIn("thesis.txt", done.stderr)

    def test_wrong_usage_is_2(self):
        for arguments in ((MODEL, self.out), (MODEL,), (MODEL, self.out, "--to", "int3"),
                          (MODEL, self.out, "--model-parallel", 0),
                          (MODEL, MODEL, "--to", "fp8"),
                          (MODEL, self.out, "--to", "fp8", "--model-parallel", 2),
                          (MODEL, self.out, "--to", "fp8", "--difference-from", MODEL),
                          (MODEL, self.out, "--difference-from", MODEL, "--bits", 9),
                          (MODEL, self.out, "--difference-from", MODEL, "--manifest"),
                          (MODEL, self.out, "--bits", 2)):
            self.assertEqual(convert(*arguments).returncode, 2, arguments)
        self.assertEqual(list(MODEL.glob("tamis-convert.json")), [])

    def test_failing_disk_is_3(self):
        limited = 'ulimit -f 4; trap "" XFSZ; exec "$@"'  # files of at most 4 blocks
        done = subprocess.run(["bash", "-c", limited, "-", TAMIS, "convert", MODEL, self.out, "--to",
                               "fp8"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertIn("writing", done.stderr)
        self.assertEqual(list(self.out.glob("*.tmp*")) + list(self.out.glob("*.safetensors")), [])
        self.assertEqual(convert(MODEL, self.out, "--to", "fp8").returncode, 0)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
