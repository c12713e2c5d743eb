"""The examples in Python, each run as a user would run it."""

import contextlib
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from support.waiting import PATIENCE_S

EXAMPLES = Path(__file__).parents[3] / "examples"


def run(name, *args, stdin=""):
    """Run an example: (exit code, standard output, standard error)."""
    command = [sys.executable, str(EXAMPLES / name), *args]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=PATIENCE_S, cwd=EXAMPLES.parent, env=environment
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.usefixtures("kept_up_with")
def test_quickstart(url):
    code, out, err = run("quickstart.py", url, "hi")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == " -0.500 ' red0 red1 red2 red3 red4 red5 red6 red7 red8 red9'"
    assert len([line for line in lines if "red" in line or "green" in line or "blue" in line]) >= 3
    assert "counted: True" in lines
    assert any(line.startswith("step ") for line in lines)
    assert lines[-1].startswith("finished: [' red0")


def test_async_typing(url):
    code, out, err = run("async_typing.py", url, "hi")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(" -0.500 hi[ red0 red1")
    assert lines[-1].endswith("hi" + "".join(f" red{i}" for i in range(10)))


def in_terminal(name, *args, keys):
    """Run an example in a terminal of its own, and type the keys when its prompt is there; returns what it wrote."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, str(EXAMPLES / name), *args], {**os.environ, "TERM": "xterm"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    written, waiting, deadline_s = "", list(keys), time.monotonic() + PATIENCE_S
    with contextlib.suppress(OSError):  # it has ended
        while time.monotonic() < deadline_s:
            if select.select([terminal], [], [], 0.05)[0]:
                read = os.read(terminal, 65536).decode("utf-8", "replace")
                written += read
                if "\x1b[6n" in read:  # where is the cursor?
                    os.write(terminal, b"\x1b[1;1R")
            elif waiting and waiting[0][0] in written:
                os.write(terminal, waiting.pop(0)[1].encode())
    os.close(terminal)
    os.waitpid(pid, 0)
    return written


def test_terminal_editor(url):
    keys = [("\x1b[6n", "hi"), ("red0", "\t"), ("red9", "\r")]
    written = in_terminal("terminal_editor.py", url, keys=keys)
    lines = written.replace("\r", "").splitlines()
    assert lines[-1].endswith("hi" + "".join(f" red{i}" for i in range(10)))


def test_batch(url, engine):
    engine.max_model_len = 30
    prompts = [f"hi {i}" for i in range(20)] + ["x" * 40]
    code, out, err = run("batch.py", url, stdin="".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["prompt"] for answer in answers] == prompts
    assert all(len(answer["drafts"]) == 3 for answer in answers[:-1])
    assert "does not fit" in answers[-1]["error"]
    assert (code, err) == (1, "Prompts without drafts: 1\n")


@pytest.mark.parametrize("name", ["quickstart.py", "async_typing.py", "terminal_editor.py"])
def test_without_a_server_they_say_so(name):
    code, _, err = run(name, "http://127.0.0.1:1")
    assert code == 1
    assert "No server answers at http://127.0.0.1:1" in err
    assert "Traceback" not in err


def test_without_an_address_they_take_that_of_the_environment(url, monkeypatch):
    monkeypatch.setenv("SUPERDRAFT_URL", url)
    assert [run("quickstart.py")[0], run("async_typing.py")[0], run("batch.py", stdin='{"prompt": "hi"}')[0]] == [0] * 3


def test_every_python_example_is_run_here():
    tested = Path(__file__).read_text()
    assert all(f'("{path.name}", ' in tested for path in EXAMPLES.glob("*.py"))
