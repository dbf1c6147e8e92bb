#!/usr/bin/env python3
"""tamis under mpirun: ranks_cli_test.py TAMIS SOURCE_DIR MPIEXEC

The answers of 2 and 4 processes are those of one, and an error of any rank ends all of them."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TAMIS, SOURCE, MPIEXEC = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
MINI = SOURCE / "models/tamis-mini"
GOLDEN = SOURCE / "tests/golden/model"
# As in cmake/Tamis.cmake, tamis_mpi_test.
ENVIRONMENT = dict(
    os.environ,
    OMPI_ALLOW_RUN_AS_ROOT="1",
    OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
    OMPI_MCA_rmaps_base_oversubscribe="1",
    OMPI_MCA_hwloc_base_binding_policy="none",
    OMPI_MCA_btl_vader_single_copy_mechanism="none",
    OMPI_MCA_btl_vader_max_send_size="1048576",
    ASAN_OPTIONS="detect_leaks=0",
)


def tamis(ranks, *arguments, **more):
    launcher = [MPIEXEC, "-n", str(ranks)] if ranks > 0 else []
    return subprocess.run(
        [*launcher, TAMIS, *map(str, arguments)],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=100, **more)


class Ranks(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="tamis-ranks-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def generate(self, ranks, *more):
        done = tamis(ranks, "generate", "-m", MINI, "-t", 1, "--prompt", "The package manager",
                     "--max-tokens", 12, "--json", *more)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count("\n"), 1, "one rank prints, once")
        answer = json.loads(done.stdout)
        del answer["timings"]
        return answer

    def test_generate(self):
        for more in ([], ["--temperature", 1.5, "--seed", 7]):
            alone = self.generate(0, *more)
            self.assertEqual(len(alone["ids"]), 12)
            for ranks in (1, 2, 4):
                self.assertEqual(self.generate(ranks, *more), alone, f"{ranks} ranks {more}")

    def test_trace(self):
        ids = self.folder / "ids.json"
        ids.write_text(json.dumps([(i * i * 31 + 3) % 200 for i in range(40)]))
        for model in ("b_fp32_sparse_yarn", "f_glm_dsa"):
            files = []
            for ranks in (0, 2, 4):
                out = self.folder / f"{model}.{ranks}.safetensors"
                done = tamis(ranks, "trace", "-m", GOLDEN / model, "-t", 1, "--ids-file", ids,
                             "--out", out, "--greedy", 4)
                self.assertEqual(done.returncode, 0, done.stderr)
                files.append(out.read_bytes())
            self.assertTrue(files[0] == files[1] == files[2], model)
            self.assertGreater(len(files[0]), 10000)

    def test_bench_prints_once(self):
        done = tamis(2, "bench", "decode", "-m", MINI, "-t", 1, "--depth", 0, "--tokens", 2,
                     "--repeat", 1, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(done.stdout.splitlines()), 1, done.stdout)

    def test_errors_end_all_ranks(self):
        for ranks, model, prompt, more, code, message in (
            (3, MINI, "1,2,3", [], 2, "3 ranks do not divide"),
            (2, MINI, "1,2,3", ["--attention", "oracle"], 2, "oracle"),
            (2, self.folder / "absent", "1,2,3", [], 1, "absent"),
            (2, MINI, "1,99999999", [], 1, "99999999"),
        ):
            done = tamis(ranks, "generate", "-m", model, "--prompt-ids", prompt, "--max-tokens", 2,
                         *more)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(message, done.stderr)
            self.assertEqual(done.stdout.strip(), "")

    def test_an_error_of_one_rank_ends_all(self):
        # mpirun gives standard input to rank 0 only; the other refuses while rank 0 goes on.
        done = tamis(2, "generate", "-m", MINI, "--prompt-file", "-", "--max-tokens", 4,
                     input="The package")
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("rank 1: standard input reaches rank 0 only", done.stderr)

    def test_commands_without_a_model_run_once(self):
        done = tamis(2, "info", "-m", MINI, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        json.loads(done.stdout)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
