"""A server for the tests of this folder: TEST TAMIS SOURCE_DIR"""

import os
import re
import signal
import subprocess
import sys
import unittest
from pathlib import Path

TAMIS, SOURCE = sys.argv[1], Path(sys.argv[2])
MODEL = SOURCE / "models/tamis-mini"


class Server:
    """`tamis serve` on a free port."""

    def __init__(self, *flags, env=None):
        self.process = subprocess.Popen(
            [TAMIS, "serve", "-m", MODEL, "--port", "0", "--threads", "1", *map(str, flags)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        for line in self.process.stderr:
            found = re.search(r"on (https?://\S+)/v1", line)
            if found:
                self.url = found.group(1)
                break
        else:
            raise RuntimeError(f"no server: exit {self.process.wait()}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        _, self.log = self.process.communicate(timeout=60)
        return self.process.returncode


class ServedTest(unittest.TestCase):
    """One server for all tests of a class, which must have ended well after SIGTERM."""

    FLAGS = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.FLAGS)
        cls.client = cls.connect(cls.server.url)

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        assert code == 0, f"exit {code} after SIGTERM\n{cls.server.log}"
