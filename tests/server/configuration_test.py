#!/usr/bin/env python3
"""Flags over environment over file: configuration_test.py TAMIS SOURCE_DIR"""

import os
import subprocess
import sys
import tempfile
import unittest

TAMIS = sys.argv[1]


def serve(*flags, file=None, **variables):
    """`tamis serve --print-config`: the process, and its lines by option."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as f:
        f.write(file or "")
        f.flush()
        config = ["--config", f.name] if file is not None else []
        done = subprocess.run(
            [TAMIS, "serve", *config, *flags, "--print-config"],
            capture_output=True, text=True, timeout=60,
            env={k: v for k, v in os.environ.items() if not k.startswith("TAMIS_")} | variables,
        )
    lines = dict(line.split(" = ", 1) for line in done.stdout.splitlines() if " = " in line)
    return done, {k: v.split("  # ", 1) for k, v in lines.items()}


class Configuration(unittest.TestCase):
    def test_a_flag_goes_over_the_environment_and_that_over_the_file(self):
        done, found = serve(
            "--port", "1", "-m", "DIR",
            file='port = 3\nhost = "::1"\nchunk = 64\nmodel = "OTHER"\nno_access_log = true\n',
            TAMIS_PORT="2", TAMIS_HOST="127.0.0.2",
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(found["port"], ["1", "flag"])
        self.assertEqual(found["model"], ['"DIR"', "flag"])
        self.assertEqual(found["host"], ['"127.0.0.2"', "TAMIS_HOST"])
        self.assertEqual(found["chunk"][0], "64")
        self.assertIn(".toml", found["chunk"][1])
        self.assertEqual(found["no-access-log"][0], "true")
        self.assertEqual(found["max-requests"], ["256", "default"])

    def test_what_is_printed_is_a_file_that_says_the_same(self):
        first, _ = serve("-m", "DIR", "--allowed-host", "a", "--allowed-host", "b", "--port", "77")
        self.assertEqual(first.returncode, 0, first.stderr)
        second, found = serve(file=first.stdout)
        self.assertEqual(second.returncode, 0, second.stderr)
        values = [line.split("  # ")[0] for line in first.stdout.splitlines()]
        self.assertEqual(values, [line.split("  # ")[0] for line in second.stdout.splitlines()])
        self.assertEqual(found["allowed-host"][0], '["a", "b"]')

    def test_lists(self):
        _, found = serve("-m", "DIR", TAMIS_CORS_ORIGIN="https://a.example,https://b.example")
        self.assertEqual(found["cors-origin"][0], '["https://a.example", "https://b.example"]')
        _, found = serve(file='model = "DIR"\ncors-origin = ["https://a.example"]\n')
        self.assertEqual(found["cors-origin"][0], '["https://a.example"]')

    def test_mistakes_are_named(self):
        for file, says, code in (
            ("prot = 1\n", "prot", 1),
            ("port = \n", "line 1", 1),
            ("port = [1, 2]\n", "port", 1),
            ("port = {a = 1}\n", "port", 1),
            ('port = "many"\n', "--port", 2),
            ("config = 'other.toml'\n", "config", 1),
        ):
            with self.subTest(file=file):
                done, _ = serve("-m", "DIR", file=file)
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn(says, done.stderr)
        done, _ = serve("-m", "DIR", TAMIS_CONFIG="nowhere.toml")
        self.assertEqual(done.returncode, 1)
        self.assertIn("nowhere.toml", done.stderr)
        done, _ = serve()
        self.assertEqual(done.returncode, 2)
        self.assertIn("--model", done.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
