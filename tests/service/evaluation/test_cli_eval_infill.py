"""`superdraft lab eval infill` of a running server and of a stand-in for llama.cpp's."""

import contextlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.models import save_tiny_coder
from support.serving import serving

from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.prompt import PrefixedText
from superdraft.server.cli import main as cli
from superdraft.server.serving import load_app
from superdraft.server.settings import Settings

CASES = [
    {"id": "a", "prefix": "def add(a, b):\n    ", "suffix": "\n\nprint(add(1, 2))\n", "reference": "return a + b"},
    {"id": "b", "prefix": "def add(a, b):\n    ret", "suffix": "\n", "reference": "urn a + b"},
]
WARM_UPS = 2
PEER = ("--peer", "llamacpp=http://127.0.0.1:9")


@contextlib.contextmanager
def answering(handler):
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with tokens to fill gaps."""
    return save_tiny_coder(tmp_path_factory.mktemp("models") / "tiny-coder")


@pytest.fixture
def cases(tmp_path):
    file = tmp_path / "cases.jsonl"
    file.write_text("".join(f"{json.dumps(case)}\n" for case in CASES))
    return str(file)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command: (exit code, results, standard error)."""

    def call(*args, command="infill"):
        monkeypatch.setattr(sys, "argv", ["superdraft", "lab", "eval", command, "-o", str(tmp_path / "out"), *args])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        path = tmp_path / "out" / "results.json"
        results = json.loads(path.read_text()) if path.exists() else None
        return caught.value.code or 0, results, capsys.readouterr().err

    return call


@pytest.fixture
def seen(monkeypatch):
    """What engines were asked for: (prompt, parameters)."""
    asked = []
    add_request = Engine.add_request

    def note(self, request):
        asked.append((request.prompt, request.params))
        add_request(self, request)

    monkeypatch.setattr(Engine, "add_request", note)
    return asked


def test_running_server_is_asked_as_editors_ask(run, cases, model, seen):
    settings = Settings(model=model, dtype="float32", device="cpu", num_threads=1, max_model_len=128, kv_memory="64MiB")
    with serving(load_app(settings)) as url:
        command = ("--cases", cases, "-n", "6", "--peer", f"superdraft={url}")
        code, results, err = run(*command)
        assert (code, err) == (0, "")
        assert [params.num_drafts for _, params in seen] == [3] * (WARM_UPS + len(CASES))
        assert seen[-1][1].token_healing
        assert seen[-1][0].text == "    ret"
        # What is done is not done again.
        assert run(*command)[:2] == (0, results)
        assert len(seen) == 2 * WARM_UPS + len(CASES)
    (found,) = results["groups"]["gaps"].values()
    assert found["figures"]["forward_rows"] is None  # the route does not tell
    assert found["figures"]["request_ms"][0] > 0
    assert found["n"] == 2
    assert found["settings"]["num_drafts"] == 3


def test_inside_lines_words_are_missing_and_nothing_is(run, tmp_path, model, seen):
    line = " ".join(f"word{letter}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    file = tmp_path / "mail.jsonl"
    file.write_text(json.dumps({"prompt": line[:39], "reference": line[40:]}))
    settings = Settings(model=model, dtype="float32", device="cpu", num_threads=1, max_model_len=512, kv_memory="64MiB")
    with serving(load_app(settings)) as url:
        command = ("--prompts", str(file), "-n", "4", "--peer", f"superdraft={url}")
        code, results, err = run(*command, command="lines")
    assert (code, err) == (0, "")
    assert list(results["groups"]) == ["words missing", "rest of a word missing", "nothing missing"]
    for found in results["groups"].values():
        assert list(found) == ["as decoded", "invoked", "automatic"]
        assert all(set(one["figures"]) == {"shown", "first_word_right", "all_right"} for one in found.values())
    assert all(isinstance(prompt, PrefixedText) for prompt, _ in seen)  # what follows the gap comes first


def test_texts_too_short_for_gaps_are_refused(run, tmp_path):
    file = tmp_path / "mail.jsonl"
    file.write_text(json.dumps({"prompt": "one two", "reference": "three"}))
    code, _, err = run("--prompts", str(file), "--peer", "superdraft=http://127.0.0.1:9", command="lines")
    assert (code, err.count("\n")) == (2, 1)
    assert "at least 20 words" in err


def test_llamacpps_server_gets_the_same_gaps(run, cases):
    bodies, answers = [], {"/v1/models": {"data": [{"id": "coder.gguf"}]}}
    answers["/infill"] = {"content": "return a + b\n", "tokens_predicted": 6}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer()

        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.answer()

        def answer(self):
            content = json.dumps(answers[self.path]).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with answering(Handler) as url:
        code, results, err = run("--cases", cases, "--peer", f"llamacpp={url}", "-n", "6")
    assert (code, err) == (0, "")
    (found,) = results["groups"]["gaps"].values()
    assert found["settings"] == {
        "peer": "llamacpp",
        "url": url,
        "model": "coder.gguf",
        "num_drafts": 1,
        "max_tokens": 6,
    }
    names = ("exact_line/first", "exact_line/any", "forward_rows")
    assert [found["figures"][name][0] for name in names] == [0.5, 0.5, 1]
    assert bodies[-1] == {
        "input_prefix": "def add(a, b):\n",
        "prompt": "    ret",
        "input_suffix": "\n",
        "n_predict": 6,
        "temperature": 0,
        "cache_prompt": True,
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--cases", "CASES"), "--peer KIND=URL is missing"),
        (PEER, "Name either a file of cases"),
        ((*PEER, "--from-source", ".", "--cases", "x"), "Name either a file of cases"),
        ((*PEER, "--cases", "none.jsonl"), "none.jsonl cannot be read"),
        ((*PEER, "--from-source", ".", "--kind", "end"), "--kind must be one of indent, mid, word"),
        ((*PEER, "--cases", "CASES", "--context-lines", "50"), "--context-lines must be BEFORE,AFTER"),
        (
            ("--cases", "CASES", "--peer", "openai=http://x"),
            "--peer must be KIND=URL with KIND one of superdraft, llamacpp",
        ),
        ((*PEER, "--cases", "CASES"), "no model list at /v1/models"),
    ],
)
def test_expected_errors_are_one_line(run, cases, args, message):
    code, results, err = run(*(cases if arg == "CASES" else arg for arg in args))
    assert (code, results) == (2, None)
    assert err.count("\n") == 1
    assert message in err
