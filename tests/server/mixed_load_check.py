"""Mixed load for a while: mixed_load_check.py TAMIS SOURCE_DIR [SECONDS] [CLIENTS]

Chats, completions, messages, schemas, tools, long prompts, wrong bodies and damaged HTTP from many
clients, nearly a third of which go away at random moments. At the end no page may be in use, the
memory of the second half may not have grown, and a fixed question must be answered as before.
"""

import json
import random
import re
import socket
import sys
import threading
import time
import urllib.request

from served import Server

SECONDS = float(sys.argv[3]) if len(sys.argv) > 3 else 60
CLIENTS = int(sys.argv[4]) if len(sys.argv) > 4 else 24
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

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def client(self, seed):
        rng = random.Random(seed)
        while time.time() < self.end:
            path, body = body_of(rng)
            data = json.dumps(body).encode()
            head = (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                    f"Content-Length: {len(data)}\r\n\r\n").encode()
            if rng.random() < 0.05:
                head = rng.randbytes(60) + b"\r\n\r\n"
            leaves = rng.randrange(3000) if rng.random() < 0.3 else None
            with socket.create_connection(("127.0.0.1", self.port), timeout=120) as s:
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


def memory(server):
    with open(f"/proc/{server.process.pid}/status") as f:
        return int(re.search(r"RssAnon:\s+(\d+)", f.read()).group(1)) / 1024


def pages(server):
    with urllib.request.urlopen(server.url + "/metrics") as answer:
        found = re.findall(r"^kv_blocks_(\w+) (\d+)", answer.read().decode(), re.M)
    return {name: int(value) for name, value in found}


def fixed(server):
    body = json.dumps({"prompt": "The file", "max_tokens": 30, "temperature": 0}).encode()
    request = urllib.request.Request(server.url + "/v1/completions", body,
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as a:
        return json.load(a)["choices"][0]["text"]


def main():
    server = Server("--no-access-log", "--max-requests", "64")
    before = fixed(server)
    load = Load(int(server.url.rsplit(":", 1)[1]))
    threads = [threading.Thread(target=load.client, args=(i,)) for i in range(CLIENTS)]
    for t in threads:
        t.start()
    history = []
    while any(t.is_alive() for t in threads):
        time.sleep(max(1, SECONDS / 40))
        history.append(memory(server))
    for _ in range(200):
        state = pages(server)
        if state["used"] == 0:
            break
        time.sleep(0.05)
    after = fixed(server)
    code = server.stop()
    half, last = max(history[: len(history) // 2]), max(history[len(history) // 2:])
    print(f"{SECONDS:.0f} s, {CLIENTS} clients: {load.counts}; pages {state}; "
          f"MiB {[round(m) for m in history]}")
    assert not load.broken, load.broken[:3]
    assert state["used"] == 0 and state["free"] + state["cached"] == state["total"], state
    assert after == before, (before, after)
    assert last < 1.05 * half + 8, f"memory grew from {half:.0f} to {last:.0f} MiB"
    assert code == 0, code


if __name__ == "__main__":
    main()
