#!/usr/bin/env python3
"""tamis info as a user meets it: info_cli_test.py TAMIS SOURCE_DIR"""

import json
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TAMIS, SOURCE = sys.argv[1], Path(sys.argv[2])
MODEL = SOURCE / "models/tamis-mini"


def info(*arguments):
    return subprocess.run([TAMIS, "info", *map(str, arguments)], capture_output=True, text=True)


class Info(unittest.TestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="tamis-info-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.model = self.folder / "model"
        shutil.copytree(MODEL, self.model)

    def test_table(self):
        done = info("-m", MODEL)
        self.assertEqual(done.returncode, 0, done.stderr)
        for part in ("deepseek_v32", "11.6M", "4: 1 dense, 3 mixture of experts", "top-k 256"):
            self.assertIn(part, done.stdout)

    def test_json(self):
        done = info("-m", MODEL, "--json", "--tensors")
        report = json.loads(done.stdout)
        self.assertEqual(report["parameters"]["total"], 11638576)
        self.assertLess(report["parameters"]["active_per_token"], 11638576)
        self.assertEqual(report["layers"]["indexer"], {"none": 0, "own": 4, "shared": 0})
        self.assertEqual(len(report["tensor_list"]), report["tensors"])
        self.assertEqual(sum(t["bytes"] for t in report["tensor_list"]), report["tensor_bytes"])
        self.assertEqual(sum(s["bytes"] for s in report["shards"]), report["file_bytes"])
        self.assertEqual(report["chat_format"], "v3.1-plain")

    def test_manifest(self):
        missing = info("-m", self.model, "--verify-manifest")
        self.assertEqual(missing.returncode, 1)
        self.assertIn("MANIFEST.json", missing.stderr)
        self.assertEqual(info("-m", self.model, "--write-manifest").returncode, 0)
        self.assertEqual(info("-m", self.model, "--verify-manifest").returncode, 0)
        shard = self.model / "model-00001-of-00002.safetensors"
        with open(shard, "r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 1]))
        listed = json.loads(info("-m", self.model, "--json", "--tensors").stdout)["tensor_list"]
        damaged = [t["name"] for t in listed if t["shard"] == shard.name][-1]
        done = info("-m", self.model, "--verify-manifest", "--json")
        self.assertEqual(done.returncode, 1)
        differences = json.loads(done.stdout)["differences"]
        self.assertEqual(len(differences), 1)
        self.assertIn(damaged, differences[0])

    def test_short_shard(self):
        shard = self.model / "model-00002-of-00002.safetensors"
        with open(shard, "r+b") as file:
            file.truncate(shard.stat().st_size - 1000)
        done = info("-m", self.model)
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("model-00002-of-00002.safetensors", done.stderr)
        self.assertIn("1000 bytes are missing", done.stderr)

    def test_links_out_of_the_folder(self):
        shard = self.model / "model-00002-of-00002.safetensors"
        shutil.move(shard, self.folder / "blob")
        shard.symlink_to(self.folder / "blob")
        self.assertEqual(info("-m", self.model).returncode, 1)
        self.assertEqual(info("-m", self.model, "--follow-links").returncode, 0)

    def test_usage(self):
        self.assertEqual(info().returncode, 2)
        self.assertEqual(info("-m", MODEL, "--write-manifest", "--verify-manifest").returncode, 2)
        self.assertEqual(info("-m", self.folder / "none").returncode, 1)
        self.assertIn("Examples:", info("--help").stdout)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
