"""Mixed load for a while: mixed_load_check.py TAMIS SOURCE_DIR [SECONDS] [CLIENTS] [RATE]

Chats, completions, messages, schemas, tools, long prompts, wrong bodies and damaged HTTP from many
clients, nearly a third of which go away at random moments. With RATE all clients together begin so
many requests a second, in bursts of CLIENTS. Fixed requests among the others must be answered, to
the bit of their log-probabilities, as they were alone. At the end no page may be in use, and memory,
open files and threads of the second half may not have grown.
"""

import json
import os
import random
import re
import resource
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

from served import Server

SECONDS = float(sys.argv[3]) if len(sys.argv) > 3 else 60
CLIENTS = int(sys.argv[4]) if len(sys.argv) > 4 else 24
RATE = float(sys.argv[5]) if len(sys.argv) > 5 else None
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "n": {"type": "integer"}},
          "required": ["a", "n"]}
TOOL = {"type": "function", "function": {"name": "look", "strict": True, "parameters": SCHEMA}}


def body_of(rng):
    """A path and what is sent to it."""
    words = " ".join(rng.choice(["file", "apt", "the", "system", "network", "install"])
                     for _ in range(rng.choice([3, 10, 40, 600])))
    more = {"max_tokens": rng.choice([1, 8, 40]), "stream": rng.random() < 0.6}
    if rng.random() < 0.5:
        more.update(temperature=1, seed=rng.randrange(100))
    user = [{"role": "user", "content": words}]
    kind = rng.randrange(7)
    if kind == 0:
        return "/v1/completions", {"prompt": words, "n": rng.choice([1, 3]), **more}
    if kind == 1:
        return "/v1/chat/completions", {"messages": user, "thinking": rng.random() < 0.5, **more}
    if kind == 2:
        form = {"type": "json_schema", "schema": SCHEMA}
        return "/v1/chat/completions", {"messages": user, "response_format": form, **more}
    if kind == 3:
        return "/v1/chat/completions", {"messages": user, "tools": [TOOL],
                                        "tool_choice": "required", **more}
    if kind == 4:
        return "/v1/messages", {"messages": user, **more}
    if kind == 5:
        pattern = f"[a-z ]{{{rng.randrange(1, 30)}}}"  # a new one nearly every time
        return "/v1/completions", {"prompt": words, "guided_regex": pattern, **more}
    return "/v1/completions", {"prompt": rng.choice([[], [-1], "", [10**9], None]), **more}


class Load:
    def __init__(self, port):
        self.port, self.end = port, time.time() + SECONDS
        self.lock, self.counts, self.broken = threading.Lock(), {}, []
        self.burst = threading.Barrier(CLIENTS) if RATE else None
        self.begun = threading.Event()

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def waits(self, rng):
        """Until the next burst; false at the end. The gaps between bursts are of any length."""
        if self.burst is None:
            return time.time() < self.end
        try:
            if self.burst.wait() == 0:
                time.sleep(min(rng.expovariate(RATE / CLIENTS), 10 * CLIENTS / RATE))
                if time.time() >= self.end:
                    self.burst.abort()
                self.begun.set()
            self.burst.wait()
        except threading.BrokenBarrierError:
            return False
        return True

    def client(self, seed):
        rng = random.Random(seed)
        while self.waits(rng):
            path, body = body_of(rng)
            data = json.dumps(body).encode()
            head = (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                    f"Content-Length: {len(data)}\r\n\r\n").encode()
            if rng.random() < 0.05:
                head = rng.randbytes(60) + b"\r\n\r\n"
            leaves = rng.randrange(3000) if rng.random() < 0.3 else None
            with socket.create_connection(("127.0.0.1", self.port), timeout=600) as s:
                try:
                    s.sendall(head + data)
                    got = b""
                    while part := s.recv(4096):
                        got += part
                        if leaves is not None and len(got) >= leaves:
                            break
                except ConnectionError:
                    got = got if got else b"reset"
            status = got[9:12].decode(errors="replace")
            if leaves is not None:
                self.count("left")
                continue
            self.count(status)
            if status not in ("200", "400", "429", "505", "set"):
                self.broken.append(got[:400])


FIXED = [
    ("/v1/completions", {"prompt": "The file", "max_tokens": 30, "temperature": 0, "logprobs": 3}),
    ("/v1/completions", {"prompt": "apt install", "max_tokens": 60, "temperature": 1.3, "seed": 5,
                         "logprobs": 1}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "What is apt? " * 40}],
                              "max_tokens": 24, "temperature": 0.8, "seed": 7, "logprobs": True,
                              "top_logprobs": 2}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Choose."}], "seed": 2,
                              "temperature": 1, "response_format": {"type": "json_schema",
                                                                    "schema": SCHEMA},
                              "max_tokens": 40, "logprobs": True}),
]


def answer(server, path, body):
    """The choices; None if the server is full."""
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=600) as a:
            return json.load(a)["choices"]
    except urllib.error.HTTPError as e:
        assert e.code == 429, e.read()
        return None


def held(server):
    """MiB of its own, open files, threads."""
    folder = f"/proc/{server.process.pid}"
    with open(folder + "/status") as f:
        status = f.read()
    number = lambda name: int(re.search(name + r":\s+(\d+)", status).group(1))
    return number("RssAnon") / 1024, len(os.listdir(folder + "/fd")), number("Threads")


def pages(server):
    with urllib.request.urlopen(server.url + "/metrics") as answer:
        found = re.findall(r"^kv_blocks_(\w+) (\d+)", answer.read().decode(), re.M)
    return {name: int(value) for name, value in found}


def settled(server):
    for _ in range(1200):
        state = pages(server)
        if state["used"] == 0:
            break
        time.sleep(0.05)
    return state


def main():
    server = Server("--no-access-log", "--max-requests", "64")
    alone = [answer(server, *fixed) for fixed in FIXED]
    load = Load(int(server.url.rsplit(":", 1)[1]))
    threads = [threading.Thread(target=load.client, args=(i,)) for i in range(CLIENTS)]
    for t in threads:
        t.start()
    history, compared, due = [], 0, time.time()
    while any(t.is_alive() for t in threads):
        which = compared % len(FIXED)
        among = answer(server, *FIXED[which])
        if among is not None:
            assert among == alone[which], (alone[which], among)
            compared += 1
        if time.time() >= due:
            history.append(held(server))
            due += max(1, SECONDS / 40)
            print(f"{time.time() - load.end + SECONDS:.0f} s: MiB, files, threads "
                  f"{history[-1]}, {load.counts}, {compared} compared", flush=True)
        if load.begun.wait(SECONDS / 600):
            load.begun.clear()
            time.sleep(0.1)  # now the others are at work
    state = settled(server)
    last_answers = [answer(server, *fixed) for fixed in FIXED]
    at_rest = held(server)
    code = server.stop()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{SECONDS:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor time, {CLIENTS} clients: {load.counts}; {compared} answers among them compared; "
          f"pages {state}; at rest MiB, files, threads {at_rest}")
    assert not load.broken, load.broken[:3]
    assert compared > 0 and last_answers == alone
    assert state["used"] == 0 and state["free"] + state["cached"] == state["total"], state
    half, last = ([max(column) for column in zip(*part)] for part in
                  (history[: len(history) // 2], history[len(history) // 2:]))
    assert last[0] < 1.05 * half[0] + 8, f"memory grew from {half[0]:.0f} to {last[0]:.0f} MiB"
    assert last[1] <= half[1] + CLIENTS and last[2] == half[2], (half, last)
    assert code == 0, code


if __name__ == "__main__":
    main()
