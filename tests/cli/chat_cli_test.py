#!/usr/bin/env python3
"""tamis chat through a pipe and on a terminal: chat_cli_test.py TAMIS SOURCE_DIR"""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

TAMIS, SOURCE = sys.argv[1], Path(sys.argv[2])
MODEL = SOURCE / "models/tamis-mini"
FACTS = "The secret code of Athens is 883553."
QUESTION = "What is the secret code of Athens?"


def chat(lines, *flags):
    return subprocess.run(
        [TAMIS, "chat", "-m", str(MODEL), *flags], input=lines, capture_output=True, text=True,
        timeout=300,
    )


class Terminal:
    """tamis chat on a pseudo-terminal."""

    def __init__(self, *flags):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(TAMIS, [TAMIS, "chat", "-m", str(MODEL), *flags])
        self.seen = ""

    def expect(self, pattern, seconds=120):
        end = time.monotonic() + seconds
        while not re.search(pattern, self.seen):
            if time.monotonic() > end:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.fd, 4096).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"ended before {pattern!r}: {self.seen!r}") from None
        self.seen = self.seen[re.search(pattern, self.seen).end():]

    def send(self, text):
        os.write(self.fd, text.encode())

    def exit_code(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self):
        os.close(self.fd)


class Piped(unittest.TestCase):
    def test_turns(self):
        done = chat(f"{FACTS} {QUESTION}\n{QUESTION}\n")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout, "883553\n883553\n")

    def test_clear_forgets(self):
        lines = f"{FACTS} {QUESTION}\n/clear\n{QUESTION}\n"
        answers = chat(lines, "-n", "8").stdout.splitlines()
        self.assertEqual(answers[0], "883553")
        self.assertNotIn("883553", answers[1])

    def test_system_message_stays(self):
        done = chat(f"/clear\n{QUESTION}\n", "--system", FACTS, "--stats", "-n", "4")
        without = chat(f"{QUESTION}\n", "--stats", "-n", "4")
        tokens = [int(re.search(r"(\d+) prompt tokens", d.stderr)[1]) for d in (done, without)]
        self.assertGreater(tokens[0], tokens[1] + 5)

    def test_thinking(self):
        done = chat(f"/think on\n{FACTS} {QUESTION}\n/think off\n{QUESTION}\n")
        self.assertRegex(done.stdout, r"^<think>[^<]+</think>\n883553\n883553\n$")
        self.assertEqual(chat(f"{FACTS} {QUESTION}\n", "--think").stdout,
                         done.stdout.rsplit("883553\n", 1)[0])

    def test_only_new_tokens_are_read(self):
        long = " ".join(f"The secret code of {c} is {i}1{i}." for i, c in enumerate("ABCDEFGHIJKL"))
        done = chat(f"{long} {QUESTION}\n{QUESTION}\n", "--stats", "-n", "4")
        stats = re.findall(r"(\d+) prompt tokens, (\d+) of them reused", done.stderr)
        self.assertEqual(len(stats), 2)
        (first, none), (second, reused) = [tuple(map(int, s)) for s in stats]
        self.assertEqual(none, 0)
        self.assertGreater(second, first)
        # Whole pages of 64 tokens are kept.
        self.assertGreaterEqual(reused, first // 64 * 64)

    def test_continued_line_is_one_turn(self):
        done = chat(f"{FACTS}\\\n{QUESTION}\n")
        self.assertEqual(done.stdout.count("\n"), 1)

    def test_last_line_without_an_end(self):
        self.assertEqual(chat(f"{FACTS} {QUESTION}").stdout, "883553\n")

    def test_exit_and_end_of_input(self):
        self.assertEqual((chat("").returncode, chat("/exit\nHi\n").stdout), (0, ""))

    def test_help(self):
        self.assertIn("/clear", chat("/help\n").stdout)

    def test_a_mistake_in_a_script_ends_it(self):
        for line in ("/nothing", "/think maybe"):
            done = chat(f"{line}\nHi\n")
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertEqual(len(done.stderr.splitlines()), 1)
        done = chat("a b c d e f g h\n", "--context", "4")
        self.assertEqual(done.returncode, 1)
        self.assertIn("the context holds 4", done.stderr)

    def test_a_path_is_no_command(self):
        self.assertEqual(chat("/usr/bin/env\n", "-n", "1").returncode, 0)


class OnATerminal(unittest.TestCase):
    def open(self, *flags):
        terminal = Terminal(*flags)
        self.addCleanup(terminal.close)
        terminal.expect("> ")
        return terminal

    def test_thoughts_are_dimmed(self):
        t = self.open("--think")
        t.send(f"{FACTS} {QUESTION}\n")
        t.expect(r"\x1b\[2m[^\x1b]+\x1b\[0m\r\n883553\r\n> ")
        t.send("/exit\n")
        self.assertEqual(t.exit_code(), 0)

    def test_interrupt_stops_the_answer_only(self):
        t = self.open("--ignore-eos", "-n", "3000")
        t.send("The configuration file is read when the\n")
        t.expect(r"\w+ \w+ \w+.*\w+ \w+")  # the echo, or the answer
        time.sleep(0.5)
        t.send("\x03")
        t.expect("\r\n> ")
        t.send("/help\n")
        t.expect("/clear")
        t.expect("> ")
        t.send("\x03")
        t.expect("again leaves\r\n> ")
        t.send("\x03")
        self.assertEqual(t.exit_code(), 0)

    def test_an_interrupt_is_forgotten_after_a_line(self):
        t = self.open()
        t.send("\x03")
        t.expect("again leaves\r\n> ")
        t.send("/help\n")
        t.expect("> ")
        t.send("\x03")
        t.expect("again leaves\r\n> ")
        t.send("\x04")
        self.assertEqual(t.exit_code(), 0)

    def test_mistakes_go_on(self):
        t = self.open()
        t.send("/nothing\n")
        t.expect("unknown command")
        t.expect("> ")
        t.send("\x04")
        self.assertEqual(t.exit_code(), 0)


if __name__ == "__main__":
    signal.alarm(580)  # a terminal that hangs shall not hang the tests
    unittest.main(argv=sys.argv[:1])
