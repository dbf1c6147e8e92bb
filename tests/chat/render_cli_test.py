"""tamis render, as a program: the golden chats byte for byte, its flags and its exit codes.

Usage: render_cli_test.py TAMIS SOURCE_DIR
"""
import json
import os
import subprocess
import sys
import tempfile

tamis, source = sys.argv[1:3]
failures = 0


def run(arguments, text=None):
    done = subprocess.run([tamis, "render", *arguments], input=text, capture_output=True)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def expect(what, holds, shown=""):
    global failures
    if not holds:
        failures += 1
        print(f"FAILED {what}: {shown}")


def flags(render):
    thinking = render.get("thinking", render.get("thinking_mode") == "thinking")
    return (
        ["--format", render["format"]]
        + ["--thinking"] * thinking
        + ["--no-generation-prompt"] * (not render.get("add_generation_prompt", True))
        + ["--keep-thinking"] * (not render.get("drop_thinking", True))
        + ["--context-messages", str(render.get("context_len", 0))]
    )


def golden():
    with open(f"{source}/tests/golden/chat/chat_cases.json", encoding="utf-8") as file:
        cases = json.load(file)["cases"]
    for case in cases:
        text = json.dumps(case["messages"]).encode()
        for render in case["renders"]:
            code, out, err = run(["--messages", "-", *flags(render)], text)
            name = f"{case['id']} {flags(render)}"
            if "error" in render:
                expect(name, code == 1 and out == "" and err, (code, out, err))
            else:
                expect(name, code == 0 and out == render["text"] and not err, (code, out, err))


def flags_and_codes():
    hello = b'[{"role":"user","content":"hello"}]'
    prompt = "<｜begin▁of▁sentence｜><｜User｜>hello<｜Assistant｜></think>"
    mini = f"{source}/models/tamis-mini"
    expect("-m", run(["-m", mini, "--messages", "-"], hello) == (0, prompt, ""))
    tools = b'[{"type":"function","function":{"name":"f","description":"d"}}]'
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tools.json")
        with open(path, "wb") as file:
            file.write(tools)
        code, out, _ = run(["--format", "v3.1", "--messages", "-", "--tools", path], hello)
        expect("--tools", code == 0 and "### f\nDescription: d\n\nParameters: {}\n" in out, out)
        code, _, err = run(["-m", folder, "--messages", "-"], hello)
        expect("no format", code == 1 and "--format" in err, err)
    for wrong in ([], ["-m", mini, "--format", "v3.1"], ["--format", "v9"]):
        expect(f"usage {wrong}", run(["--messages", "-", *wrong], hello)[0] == 2)
    code, _, err = run(["--format", "v3.1", "--messages", "/nonexistent"])
    expect("no file", code == 1 and "/nonexistent" in err, err)
    code, out, _ = run(["--help"])
    expect("--help", code == 0 and "Examples:" in out)


golden()
flags_and_codes()
sys.exit(failures != 0)
