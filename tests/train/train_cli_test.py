#!/usr/bin/env python3
"""tamis data and tamis train as a user meets them: train_cli_test.py TAMIS SOURCE_DIR [MPIEXEC]"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

TAMIS, SOURCE = sys.argv[1], Path(sys.argv[2])
MPIEXEC = sys.argv[3] if len(sys.argv) > 3 else None
MODEL = SOURCE / "models/tamis-mini"

RECIPE = """
[model]
config = "config.json"
tokenizer = "tokenizer"
[data]
train = "data"
[run]
out = "run"
save_every = 1
[[stage]]
kind = "pretrain"
steps = 6
batch = 3
length = 48
lr = 1e-3
[[stage]]
kind = "warmup"
steps = 4
batch = 2
length = 48
lr = 1e-3
[[stage]]
kind = "sparse"
steps = 4
batch = 2
length = 48
topk = 8
lr = 1e-4
"""


def tamis(*arguments, **options):
    return subprocess.run([TAMIS, *map(str, arguments)], capture_output=True, text=True, **options)


class Train(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = Path(tempfile.mkdtemp(prefix="tamis-train-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        config = json.loads((MODEL / "config.json").read_text())
        config.update(hidden_size=32, num_hidden_layers=2, intermediate_size=48, kv_lora_rank=16,
                      q_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8,
                      moe_intermediate_size=16, index_head_dim=8)
        (cls.folder / "config.json").write_text(json.dumps(config))
        (cls.folder / "train.toml").write_text(RECIPE)
        (cls.folder / "tokenizer").mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(MODEL / name, cls.folder / "tokenizer")
        lines = [json.dumps({"text": "One line. " * n}) for n in range(1, 40)]
        (cls.folder / "more.jsonl").write_text("\n".join(lines) + "\n\n")
        (cls.folder / "bad.txt").write_bytes(b"\xff\xfe not UTF-8")
        done = tamis("data", "build", "-t", cls.folder / "tokenizer", "-o", cls.folder / "data",
                     SOURCE / "README.md", cls.folder / "more.jsonl", cls.folder / "bad.txt")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("40 documents, "), done.stdout
        assert "1 documents skipped" in done.stdout, done.stdout

    def train(self, out, *arguments):
        return ["train", "-c", self.folder / "train.toml", "--set", f"run.out={self.folder / out}",
                *arguments]

    def test_data_refuses(self):
        again = tamis("data", "build", "-t", self.folder / "tokenizer", "-o", self.folder / "data",
                      SOURCE / "README.md")
        self.assertEqual(again.returncode, 1)
        self.assertIn("holds data already", again.stderr)
        (self.folder / "wrong.jsonl").write_text('{"texts": "x"}\n')
        wrong = tamis("data", "build", "-t", self.folder / "tokenizer", "-o", self.folder / "data2",
                      self.folder / "wrong.jsonl")
        self.assertEqual(wrong.returncode, 1)
        self.assertIn("wrong.jsonl:1", wrong.stderr)

    def test_dry_run(self):
        done = tamis(*self.train("dry", "--dry-run"))
        self.assertEqual(done.returncode, 0, done.stderr)
        for part in ("parameters", "MFLOP a token", "KL over every earlier token",
                     "KL over the 8 selected"):
            self.assertIn(part, done.stdout)
        self.assertFalse((self.folder / "dry").exists())
        self.assertNotIn("FP8", done.stdout)
        done = tamis(*self.train("dry", "--dry-run", "--precision", "fp8"))
        self.assertEqual(done.stdout.count("linear layers of FP8 factors"), 3)

    def test_killed_runs_go_on_to_the_same_bytes(self):
        done = tamis(*self.train("whole"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("stage sparse: sparse: sparse attention, KL over the 8 selected", done.stderr)
        self.assertIn("tokens/s", done.stderr)
        kills = 0
        for wait in (0.3, 0.5, 0.8, 0.4, 0.6, 1.0):
            process = subprocess.Popen([TAMIS, *map(str, self.train("killed"))],
                                       stderr=subprocess.DEVNULL)
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        self.assertGreater(kills, 0)
        done = tamis(*self.train("killed"))
        self.assertEqual(done.returncode, 0, done.stderr)
        for stage in ("pretrain", "warmup", "sparse"):
            model = Path(stage) / "model.safetensors"
            self.assertEqual((self.folder / "whole" / model).read_bytes(),
                             (self.folder / "killed" / model).read_bytes(), stage)
        log = [json.loads(line) for line in (self.folder / "killed/log.jsonl").open()]
        self.assertEqual([line["step"] for line in log], list(range(1, 15)))

        for stage in ("pretrain", "sparse"):  # what was trained runs
            answer = tamis("generate", "-m", self.folder / "whole" / stage, "--prompt",
                           "One line. " * 6, "--max-tokens", "4", "--ignore-eos", "--json")
            self.assertEqual(answer.returncode, 0, answer.stderr)
            self.assertEqual(len(json.loads(answer.stdout)["ids"]), 4)

    if MPIEXEC:  # else the build has no MPI
        def test_ranks_give_the_bytes_of_one_process(self):
            done = tamis(*self.train("single"))
            self.assertEqual(done.returncode, 0, done.stderr)
            # As tamis_mpi_test sets them.
            environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1",
                           "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                           "OMPI_MCA_rmaps_base_oversubscribe": "1",
                           "OMPI_MCA_hwloc_base_binding_policy": "none",
                           "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
                           "ASAN_OPTIONS": "detect_leaks=0"}
            # An error of a rank is said before MPI ends them.
            wrong = subprocess.run([MPIEXEC, "-n", "2", TAMIS,
                                    *map(str, self.train("wrong", "--expert-parallel", "3"))],
                                   capture_output=True, text=True, env=environment)
            self.assertEqual(wrong.returncode, 1, wrong.stderr)
            self.assertIn("want a multiple of 3 ranks, got 2", wrong.stderr)
            for ranks, layout in ((2, ()), (4, ("--expert-parallel", "2"))):
                out = f"ranks{ranks}"
                done = subprocess.run([MPIEXEC, "-n", str(ranks), TAMIS,
                                       *map(str, self.train(out, "--threads", "1", *layout))],
                                      capture_output=True, text=True, env=environment)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual(done.stderr.count("stage sparse:"), 1, done.stderr)
                for stage in ("pretrain", "warmup", "sparse"):
                    model = Path(stage) / "model.safetensors"
                    self.assertEqual((self.folder / "single" / model).read_bytes(),
                                     (self.folder / out / model).read_bytes(), stage)

    def test_a_branch_has_the_steps_of_the_whole_run(self):
        done = tamis(*self.train("trunk"))
        self.assertEqual(done.returncode, 0, done.stderr)
        branch = ["--set", f"run.branch_from={self.folder / 'trunk'}"]
        done = tamis(*self.train("branch", *branch))
        self.assertEqual(done.returncode, 0, done.stderr)
        # All but the last stage is the other run's, weights, moments and batches.
        def log(out):
            lines = [json.loads(line) for line in (self.folder / out / "log.jsonl").open()]
            return [(line["step"], line["loss"], line.get("kl")) for line in lines]
        self.assertEqual(log("branch"), log("trunk")[10:])
        self.assertEqual((self.folder / "trunk/sparse/model.safetensors").read_bytes(),
                         (self.folder / "branch/sparse/model.safetensors").read_bytes())
        # Another last stage begins where that one did; another first stage has nothing to begin from.
        done = tamis(*self.train("other", *branch, "--set", "stage.2.lr=2e-4"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([line[0] for line in log("other")], [11, 12, 13, 14])
        self.assertEqual(log("other")[0], log("trunk")[10])
        self.assertNotEqual(log("other")[1:], log("trunk")[11:])
        for change in ["stage.0.lr=2e-3", "run.seed=7"]:
            done = tamis(*self.train("none", *branch, "--set", change))
            self.assertEqual(done.returncode, 1)
            self.assertIn("run.branch_from", done.stderr)

    def test_refuses(self):
        def refused(code, text, *arguments):
            done = tamis(*self.train("refused", *arguments))
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(text, done.stderr)

        refused(1, "the indexer is fresh", "--set", "stage.1.kind=dense")
        refused(1, "topk", "--set", "stage.2.topk=48")
        refused(1, "no such key", "--set", "run.outt=x")
        refused(2, "want KEY=VALUE", "--set", "run.seed")
        refused(3, "--backend cpu", "--backend", "cuda")  # a build without CUDA, or no GPU
        refused(2, "needs --backend cuda", "--precision", "bf16")
        refused(2, "needs --backend cuda", "--set", "run.mode=fast")
        refused(1, "want f32, bf16 or fp8", "--precision", "fp16")
        refused(2, "want tensor_parallel = 1", "--precision", "fp8", "--tensor-parallel", "2")
        forced = {**os.environ, "TAMIS_OP": "matmul"}
        done = tamis(*self.train("refused"), env=forced)
        self.assertEqual(done.returncode, 2)
        self.assertIn("want op:implementation", done.stderr)
        refused(1, "want deterministic or fast", "--set", "run.mode=quick")
        refused(1, "mpirun -n 2", "--expert-parallel", "2")

    def test_what_is_missing_is_said_with_what_to_do(self):
        empty, file = self.folder / "empty", self.folder / "file"
        empty.mkdir()
        file.write_text("a file")
        broken = self.folder / "broken"
        shutil.copytree(self.folder / "data", broken)
        for shard in broken.glob("*.safetensors"):
            shard.unlink()

        def refused(text, *arguments):
            done = tamis(*arguments)
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertIn(text, done.stderr)

        def set_to(key, value, text):
            refused(text, *self.train("missing", "--set", f'{key}="{value}"'))

        refused("nothing.toml: no such file; want the recipe", "train", "-c",
                self.folder / "nothing.toml")
        refused("a folder, not a file; want the recipe", "train", "-c", self.folder)
        set_to("model.config", "nothing.json", "nothing.json: no such file; model.config: want")
        set_to("model.config", self.folder, "a folder, not a file; model.config: want")
        for folder in (empty, "/nothing"):
            set_to("model.tokenizer", folder,
                   f"{folder}/tokenizer.json: no such file; model.tokenizer: want")
            set_to("model.from", folder, f"{folder}/config.json: no such file; model.from: want")
            set_to("run.branch_from", folder, f"{folder}: run.branch_from: want a run")
            for key in ("data.train", "data.validation", "stage.0.data"):
                set_to(key, folder, f"{folder}: no data.json; `tamis data build` makes")
        set_to("data.train", broken, "tokens-00000.safetensors: no such file; data.json of the")
        set_to("run.out", file / "run", "the folder cannot be made (Not a directory); run.out: want")

        def build(text, tokenizer, out, *inputs):
            refused(text, "data", "build", "-t", tokenizer, "-o", out, *inputs)

        tokenizer, readme = self.folder / "tokenizer", SOURCE / "README.md"
        build("tokenizer.json: no such file; --tokenizer: want", empty, self.folder / "new", readme)
        build("(Not a directory); --out: want", tokenizer, file / "data", readme)
        build("nothing.txt: no such file; want files of text", tokenizer, self.folder / "new",
              readme, "nothing.txt")
        build("the inputs hold no text; want files of text", tokenizer, self.folder / "new", empty)


unittest.main(argv=sys.argv[:1])
