#!/usr/bin/env python3
"""tamis plan against what happens: plan_cli_test.py TAMIS SOURCE_DIR"""

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

TAMIS, SOURCE = sys.argv[1], Path(sys.argv[2])
MINI = SOURCE / "models/tamis-mini"


def plan(*arguments):
    return subprocess.run([TAMIS, "plan", "-m", MINI, "-t", "2", *map(str, arguments)],
                          capture_output=True, text=True)


def peak_of_generate(context, *more):
    """The largest resident set of a run whose prompt and answer are `context` tokens."""
    ids = ",".join(str((i * 2654435761 >> 7) % 8000 + 3) for i in range(context - 4))
    run = subprocess.Popen([TAMIS, "generate", "-m", MINI, "-t", "2", "--prompt-ids", ids,
                            "--max-tokens", "4", "--ignore-eos", "--json", *more],
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(run.pid, 0)
    run.returncode = os.waitstatus_to_exitcode(status)
    message = run.stderr.read()
    run.stderr.close()
    if run.returncode != 0:
        raise RuntimeError(message)
    return usage.ru_maxrss * 1024


class Plan(unittest.TestCase):
    def test_peak_within_5_percent(self):
        for context, more in ((1024, []), (2048, ["--cache-type", "bf16"])):
            done = plan("--context", context, "--no-probe", "--json", *more)
            self.assertEqual(done.returncode, 0, done.stderr)
            predicted = json.loads(done.stdout)["memory"]
            measured = peak_of_generate(context, *more)
            self.assertLess(abs(predicted["peak"] - measured), 0.05 * measured, predicted)

    def test_cache_bytes(self):
        # 4 layers; 512 latent and 64 RoPE values, 128 of the indexer.
        for cache, latent, index in (("f32", 2304, 512), ("bf16", 1152, 256), ("fp8", 656, 132)):
            m = json.loads(plan("--no-probe", "--json", "--context", 65, "--cache-type",
                                cache).stdout)["memory"]
            self.assertEqual(m["latent_per_token"], 4 * latent)
            self.assertEqual(m["index_per_token"], 4 * index)
            self.assertEqual(m["cache"], 128 * 4 * (latent + index))

    def test_speeds(self):
        report = json.loads(plan("--json").stdout)
        rate = {(s["depth"], s["attention"]): s["tokens_per_s"] for s in report["decode"]}
        self.assertEqual(sorted(d for d, _ in rate), [0, 0, 2048, 2048])
        self.assertGreater(rate[0, "dense"], rate[2048, "dense"])
        # Up to top-k both read the same rows.
        self.assertEqual(rate[0, "dense"], rate[0, "sparse"])
        self.assertGreater(rate[2048, "sparse"], rate[2048, "dense"])
        self.assertTrue(256 <= report["crossover_depth"] < 2048, report["crossover_depth"])
        self.assertEqual(report["largest_context"], 4096)

    def test_table_and_usage(self):
        done = plan("--no-probe", "--context", 100)
        for part in ("weights, mapped", "peak (VmHWM)", "sparse", "dense"):
            self.assertIn(part, done.stdout)
        self.assertEqual(plan("--context", 0).returncode, 2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], verbosity=2)
