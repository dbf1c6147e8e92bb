#!/usr/bin/env python3
"""Every command as a user meets it: commands_cli_test.py TAMIS SOURCE_DIR

What each command prints in detail is tested beside it; this is the part that all share: --help,
exit codes, one line for a mistake, and that each does its work on the bundled model.
"""

import json
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TAMIS, SOURCE = sys.argv[1], Path(sys.argv[2])
MODEL = SOURCE / "models/tamis-mini"
SMALL = SOURCE / "tests/golden/model/b_fp32_sparse_yarn"
COMMANDS = {
    "bench": ["decode", "op", "prefill", "serve"],
    "chat": [],
    "convert": [],
    "eval": ["perplexity", "retrieval", "exercises"],
    "generate": [],
    "info": [],
    "render": [],
    "serve": [],
    "tokenize": [],
    "trace": [],
    "verify": [],
}
NEED_MODEL = {
    "chat": [],
    "eval": ["perplexity", "--text", "/dev/null"],
    "generate": ["--prompt", "a"],
    "info": [],
    "serve": ["--port", "0"],
    "tokenize": [],
    "trace": ["--ids-file", "/dev/null", "--out", "/dev/null"],
    "verify": [],
}


def tamis(*arguments, stdin=""):
    return subprocess.run(
        [TAMIS, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=300
    )


class Commands(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory(prefix="tamis-cli-")
        self.addCleanup(self.scratch.cleanup)
        self.folder = Path(self.scratch.name)

    def fails(self, done, code, *parts):
        """With this exit code, nothing on stdout and one line on stderr that holds the parts.

        A server tells its settings first, so that a log has them also where it could not start.
        """
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stdout, "")
        errors = [x for x in done.stderr.splitlines() if not x.startswith("tamis serve: port = ")]
        self.assertEqual(len(errors), 1, done.stderr)
        for part in parts:
            self.assertIn(part, errors[0])

    def test_serve_refuses_a_prefix_file_before_it_starts(self):
        # Found out only when the server stops, all that it kept would be lost.
        for path, reason in (("/nonexistent/prefixes", "No such file"), (MODEL, "is a folder")):
            self.fails(tamis("serve", "-m", MODEL, "--port", 0, "--prefix-cache-file", path), 1,
                       "--prefix-cache-file: ", reason)

    def test_help(self):
        done = tamis("--help")
        self.assertEqual(done.returncode, 0)
        for command, below in COMMANDS.items():
            self.assertIn(command, done.stdout)
            for arguments in [[command], *([command, sub] for sub in below)]:
                with self.subTest(arguments=arguments):
                    page = tamis(*arguments, "--help")
                    self.assertEqual((page.returncode, page.stderr), (0, ""))
                    self.assertIn("Usage", page.stdout)

    def test_version(self):
        self.assertRegex(tamis("--version").stdout, r"^tamis \d+\.\d+")

    def test_wrong_usage(self):
        self.assertEqual(tamis().returncode, 2)
        self.assertEqual(tamis("none").returncode, 2)
        for command, below in COMMANDS.items():
            with self.subTest(command=command):
                done = tamis(command, *below[:1], "--no-such-flag")
                self.assertEqual(done.returncode, 2)
                self.assertEqual(done.stdout, "")

    def test_folder_that_is_not_there(self):
        missing = self.folder / "none"
        ids = self.folder / "ids.json"
        ids.write_text("[1, 2]")
        for command, more in NEED_MODEL.items():
            with self.subTest(command=command):
                sub, rest = (more[:1], more[1:]) if command == "eval" else ([], more)
                rest = [ids if command == "trace" and word == "/dev/null" else word for word in rest]
                self.fails(tamis(command, *sub, "-m", missing, *rest), 1, "none")
        self.fails(tamis("convert", missing, self.folder / "out"), 1, "none")

    def test_folder_that_is_no_model(self):
        (self.folder / "config.json").write_text("{")
        self.fails(tamis("generate", "-m", self.folder, "--prompt", "a"), 1, "model.safetensors")

    def test_messages_do_not_pass_on_control_characters(self):
        done = tamis("generate", "-m", self.folder / "\x1b[31mred", "--prompt", "a")
        self.assertEqual(done.returncode, 1)
        self.assertEqual(len(done.stderr.splitlines()), 1)

    def test_generate(self):
        done = tamis("generate", "-m", MODEL, "--prompt", "The file", "-n", 4, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        out = json.loads(done.stdout)
        self.assertEqual(len(out["ids"]), 4)
        self.assertEqual(out["finish_reason"], "length")
        self.assertTrue(
            {"prompt_ids", "ids", "text", "finish_reason", "timings"} <= set(out), out.keys()
        )
        ids = ",".join(map(str, out["prompt_ids"]))
        again = tamis("generate", "-m", MODEL, "--prompt-ids", ids, "-n", 4, "--json")
        self.assertEqual(json.loads(again.stdout)["ids"], out["ids"])

    def test_generate_refuses(self):
        run = ["generate", "-m", MODEL]
        self.fails(tamis(*run), 2, "--prompt")
        self.fails(tamis(*run, "--prompt", "a", "--prompt-ids", "1"), 2, "exactly one")
        self.fails(tamis(*run, "--prompt-ids", "8192"), 1, "8192")
        self.fails(tamis(*run, "--prompt-ids", "1,x"), 1)
        self.fails(tamis(*run, "--prompt", "a", "--temperature", "-1"), 2, "temperature")
        self.fails(tamis(*run, "--prompt", "a", "--attention", "none"), 2, "attention")
        self.fails(tamis(*run, "--prompt", "a", "--backend", "tpu"), 2, "tpu")
        self.fails(tamis(*run, "--prompt", "a", "--cache-type", "fp4"), 2, "fp4")
        self.fails(tamis(*run, "--prompt-file", self.folder / "none"), 1, "none")
        self.fails(tamis(*run, "--chat", "-", stdin="{}"), 1)

    def test_tokenize(self):
        text = "The file ünï\n"
        ids = tamis("tokenize", "-m", MODEL, stdin=text)
        self.assertEqual(ids.returncode, 0, ids.stderr)
        self.assertGreater(len(json.loads(ids.stdout)), 2)
        back = tamis("tokenize", "-m", MODEL, "--decode", stdin=ids.stdout)
        self.assertEqual(back.stdout.rstrip("\n"), text.rstrip("\n"))
        self.fails(tamis("tokenize", "-m", MODEL, "--decode", stdin="[99999999]"), 1, "99999999")

    def test_render(self):
        done = tamis("render", "-m", MODEL, "--messages", "-",
                     stdin='[{"role":"user","content":"Hi"}]')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(
            done.stdout, "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>"
        )

    def test_trace(self):
        ids, out = self.folder / "ids.json", self.folder / "t.safetensors"
        ids.write_text(json.dumps(list(range(3, 43))))
        done = tamis("trace", "-m", SMALL, "--ids-file", ids, "--out", out, "--greedy", 3)
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)
        with open(out, "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        self.assertEqual(header["logits"]["shape"], [40, 272])
        self.assertEqual(header["topk.0"]["shape"], [40, 16])
        self.assertEqual(header["greedy.ids"]["shape"], [3])
        ids.write_text("[]")
        self.fails(tamis("trace", "-m", SMALL, "--ids-file", ids, "--out", out), 1, "no token ids")
        ids.write_text("[272]")
        self.fails(tamis("trace", "-m", SMALL, "--ids-file", ids, "--out", out), 1, "272")

    def test_bench(self):
        done = tamis("bench", "decode", "-m", SMALL, "--depth", 8, "--tokens", 2, "--repeat", 1,
                     "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(json.loads(done.stdout.splitlines()[0]))
        page = self.folder / "decode.html"
        done = tamis("bench", "prefill", "-m", SMALL, "--length", "8,16", "--repeat", 1, "--html", page)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(page.read_text().count("<tr"), 3)
        self.assertNotIn("http", page.read_text())

    def test_bench_op(self):
        names = tamis("bench", "op", "--list")
        self.assertEqual(names.returncode, 0, names.stderr)
        for op in ["linear", "mla_sparse", "mla_dense", "indexer_select", "topk", "rms_norm"]:
            self.assertRegex(names.stdout, rf"(?m)^{op} +v32_")
            self.assertRegex(names.stdout, rf"(?m)^{op} +mini_")
        page = self.folder / "op.html"
        done = tamis("bench", "op", "--op", "topk,swiglu", "--shape", "mini", "--seconds", 0,
                     "--threads", 2, "--json", "--html", page)
        self.assertEqual(done.returncode, 0, done.stderr)
        machine, *results = map(json.loads, done.stdout.splitlines())
        self.assertEqual((machine["bench"], machine["threads"]), ("machine", 2))
        self.assertGreater(machine["read_gb_per_s"], 0.1)
        self.assertGreater(machine["fma_gflops"], 0.1)
        self.assertEqual({r["op"] for r in results}, {"topk", "swiglu"})
        listed = [json.loads(l) for l in tamis(
            "bench", "op", "--op", "topk,swiglu", "--shape", "mini", "--list", "--json"
        ).stdout.splitlines()]
        self.assertEqual([r["shape"] for r in results], [w["shape"] for w in listed])
        for r, w in zip(results, listed):
            # The figures follow from the time and the shape.
            self.assertAlmostEqual(r["gb_per_s"], w["bytes"] / r["us"] * 1e-3, places=6)
            self.assertAlmostEqual(r["gflops"], w["flops"] / r["us"] * 1e-3, places=6)
            share = {"memory": r["gb_per_s"] / machine["read_gb_per_s"],
                     "arithmetic": r["gflops"] / machine["fma_gflops"]}
            self.assertAlmostEqual(r["share"], max(share.values()), places=6)
            self.assertAlmostEqual(share[r["limit"]], r["share"], places=6)
        self.assertEqual(page.read_text().count("<tr"), len(results) + 1)
        forced = tamis("bench", "op", "--op", "topk", "--shape", "mini_4k.equal", "--seconds", 0,
                       "--backend", "reference", "--json")
        self.assertEqual(json.loads(forced.stdout.splitlines()[1])["implementation"], "reference")
        self.fails(tamis("bench", "op", "--op", "none"), 2, "'none'", "mla_sparse")
        self.fails(tamis("bench", "op", "--shape", "none"), 2, "'none'")
        self.fails(tamis("bench", "op", "--op", "topk", "--backend", "tpu"), 2, "tpu")

    def test_info(self):
        self.assertIn("deepseek_v32", tamis("info", "-m", MODEL).stdout)

    def test_convert(self):
        out = self.folder / "ranks"
        done = tamis("convert", SMALL, out, "--model-parallel", 2)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue((out / "model1-mp2.safetensors").exists())
        self.assertNotEqual(tamis("convert", SMALL, out, "--to", "fp3").returncode, 0)

    def test_perplexity(self):
        text = self.folder / "text.txt"
        text.write_text("The configuration file is read when the program starts.\n" * 4)
        run = ["eval", "perplexity", "-m", MODEL, "--text"]
        done = tamis(*run, text, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        out = json.loads(done.stdout)
        self.assertAlmostEqual(out["perplexity"], 2.718281828459045 ** out["nll"], places=6)
        self.assertAlmostEqual(
            out["bits_per_byte"],
            out["nll"] * out["tokens"] / 0.6931471805599453 / text.stat().st_size,
        )
        halves = json.loads(tamis(*run, text, "--context", 20, "--json").stdout)
        self.assertGreater(len(halves["chunks"]), 1)
        self.assertGreater(halves["nll"], out["nll"])
        self.assertIn("bits per byte", tamis(*run, text).stdout)
        self.fails(tamis(*run, self.folder / "none"), 1, "none")
        self.fails(tamis(*run, text, "--context", 4097), 2, "4096")
        (self.folder / "empty.txt").write_text("")
        self.fails(tamis(*run, self.folder / "empty.txt"), 1, "0 tokens")
        (self.folder / "bytes.txt").write_bytes(b"abc\xff\xfe")
        self.fails(tamis(*run, self.folder / "bytes.txt"), 1, "UTF-8")

    def test_retrieval(self):
        text = self.folder / "text.txt"
        text.write_text("A line of the text.\nAnother one, about nothing.\n" * 3)
        run = ["eval", "retrieval", "-m", MODEL, "--context", 300, "--cases", 2]
        done = tamis(*run, "--text", text, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        cells = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([c["task"] for c in cells], ["kv", "needle"])
        for c in cells:
            self.assertEqual(c["cases"], 2)
            self.assertEqual(c["right"], 2 - len(c["wrong"]))
            self.assertEqual(c["exact_match"], c["right"] / 2)
            self.assertLessEqual(c["prompt_tokens"], 600)
        # The questions are numbered: two runs of one are a run of two.
        parts = [json.loads(tamis(*run[:-1], 1, "--task", "kv", "--first-case", i, "--json").stdout)
                 for i in (0, 1)]
        self.assertEqual(sum(p["prompt_tokens"] for p in parts), cells[0]["prompt_tokens"])
        self.assertRegex(tamis(*run, "--task", "kv").stdout, r"kv +300 sparse +\d of 2")
        self.fails(tamis(*run), 2, "--text")
        self.fails(tamis(*run, "--task", "other"), 2, "other")
        self.fails(tamis(*run[:-4], "--context", 8192, "--task", "kv"), 2, "4096")

    def test_exercises(self):
        run = ["eval", "exercises", "-m", MODEL, "--sequences", 2, "--task", "copy:words=4", "--task",
               "recall:queries=2", "--context", 128]
        done = tamis(*run, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        cells = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([c["task"] for c in cells], ["copy:words=4", "recall:queries=2"])
        for c in cells:
            self.assertEqual(c["sequences"], 2)
            self.assertEqual(c["answers"], len(c["results"].replace(" ", "")))
            self.assertEqual(c["right"], c["results"].count("1"))
        self.assertEqual(cells[1]["answers"], 4)
        self.assertRegex(tamis(*run).stdout, r"recall:queries=2 +128 sparse +\d of 4")
        self.fails(tamis(*run, "--task", "copy:word=3"), 2, "word=3")
        self.fails(tamis(*run, "--context", 8192), 2, "4096")
        lines = self.folder / "texts.jsonl"
        lines.write_text('{"text": "One text of a few words."}\n\n{"text": "Another."}\n')
        done = tamis("eval", "perplexity", "-m", MODEL, "--text", lines, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        chunks = json.loads(done.stdout)["chunks"]
        self.assertEqual(len(chunks), 2)
        self.assertEqual([sum(v[0] for v in c["by_position"].values()) for c in chunks],
                         [c["tokens"] for c in chunks])
        lines.write_text('{"txt": ""}')
        self.fails(tamis("eval", "perplexity", "-m", MODEL, "--text", lines), 1, "texts.jsonl:1")

    def test_precision_of_quantised_checkpoints(self):
        int8 = self.folder / "int8"
        self.assertEqual(tamis("convert", MODEL, int8, "--to", "int8").returncode, 0)
        run = ["generate", "-m", int8, "--prompt", "The", "--max-tokens", 2, "--explain-kernels"]
        for flags in [], ["--precision", "int8"]:
            done = tamis(*run, *flags)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("linear_int8: simd", done.stderr)
        exact = tamis(*run, "--precision", "exact")
        self.assertEqual(exact.returncode, 0, exact.stderr)
        self.assertNotIn("linear_int8", exact.stderr)
        # The reference has the same product; a checkpoint without integers has none.
        self.assertIn("linear_int8: ref", tamis(*run, "--backend", "reference").stderr)
        run[2] = MODEL
        self.assertNotIn("linear_int8", tamis(*run).stderr)
        self.fails(tamis(*run, "--precision", "int8"), 2, "int8", "tamis convert")
        self.fails(tamis(*run, "--precision", "int9"), 2, "int9", "exact, native or int8")
        self.fails(tamis("verify", "-m", int8, "--precision", "int8"), 2, "exact or native")
        done = tamis("bench", "decode", "-m", int8, "--depth", 0, "--tokens", 1, "--repeat", 1, "--json")
        self.assertEqual(json.loads(done.stdout)["precision"], "int8")

    def test_verify(self):
        done = tamis("verify", "-m", SMALL, "--tokens", 40, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        out = json.loads(done.stdout)
        self.assertTrue(out["pass"])
        self.assertEqual(len(out["controls"]), 3)
        for control in out["controls"]:
            self.assertTrue(control["found"], control)
        table = tamis("verify", "-m", SMALL, "--tokens", 12, "--precision", "native")
        self.assertEqual(table.returncode, 0, table.stdout + table.stderr)
        self.assertIn("top-k 6 (the checkpoint has 16", table.stderr)
        self.assertIn("\npass\n", table.stdout)
        self.assertEqual(tamis("verify", "-m", SMALL, "--attention", "dense").returncode, 2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
