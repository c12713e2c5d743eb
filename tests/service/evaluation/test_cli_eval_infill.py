"""`superdraft lab eval infill` on a tiny model, beside a running server and a stand-in for llama.cpp's."""

import contextlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.models import save_tiny_coder
from support.serving import serving

from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.text.fim import gap_prompt
from superdraft.evaluation.decoders import infill_server
from superdraft.server.cli import main as cli
from superdraft.server.serving import load_app
from superdraft.server.settings import Settings

CASES = [
    {"id": "a", "prefix": "def add(a, b):\n    ", "suffix": "\n\nprint(add(1, 2))\n", "reference": "return a + b"},
    {"id": "b", "prefix": "def add(a, b):\n    ret", "suffix": "\n", "reference": "urn a + b"},
]
WARM_UPS = 2


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
def run(monkeypatch, capsys, tmp_path, model):
    """Run the command: (exit code, results, standard error)."""
    monkeypatch.setenv("SUPERDRAFT_DEFAULT_MAX_BRANCHES", "3")
    monkeypatch.setattr(
        "superdraft.evaluation.runs.infill.configure_logging", lambda *_: None
    )  # it would stay for all tests

    def call(*args, output="out"):
        command = [
            "superdraft",
            "lab",
            "eval",
            "infill",
            "--model",
            model,
            "--dtype",
            "float32",
            "-o",
            str(tmp_path / output),
        ]
        monkeypatch.setattr(sys, "argv", [*command, *args])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        path = tmp_path / output / "results.json"
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


def test_what_is_measured_is_what_a_server_answers(run, cases, model, seen):
    settings = Settings(model=model, dtype="float32", device="cpu", num_threads=1, max_model_len=128, kv_memory="64MiB")
    app = load_app(settings)
    with serving(app) as url:
        code, results, err = run("--cases", cases, "-n", "6", "--peer", f"superdraft={url}")
    assert (code, err) == (0, "")
    served, peer = results["decoders"].values()
    ours, theirs = seen[: WARM_UPS + len(CASES)], seen[WARM_UPS + len(CASES) :]
    assert ours == theirs
    assert len(ours) == WARM_UPS + len(CASES)
    assert ours[0][1].max_branches == 3
    assert ours[0][1].token_healing
    assert served["forward_rows"] > 0
    assert peer["forward_rows"] is None  # the route does not tell
    for name in ("exact_line", "first_word", "first_character", "keystroke_savings", "num_drafts"):
        assert served[name] == peer[name], name
    assert served["request_ms"] > 0
    assert served["n"] == 2


def test_variations_change_the_requests(run, cases, seen, monkeypatch):
    layouts = []

    def with_layout(gap, fim, tokenizer, budget, layout="none"):
        layouts.append((gap.prefix, layout))
        return gap_prompt(gap, fim, tokenizer, budget)

    monkeypatch.setattr(infill_server, "gap_prompt", with_layout)
    decoders = ("served", "served healing=off", "served layout=piece_after_middle,line_in_prefix k=1")
    code, results, err = run("--cases", cases, *(part for text in decoders for part in ("--decoder", text)))
    assert (code, err) == (0, "")
    assert list(results["decoders"]) == [
        "served",
        "served healing=off",
        "served k=1 layout=piece_after_middle",
        "served k=1 layout=line_in_prefix",
    ]
    each = WARM_UPS + len(CASES)
    assert [params.token_healing for _, params in seen] == [True] * each + [False] * each + [True] * 2 * each
    assert [params.num_drafts for _, params in seen] == [3] * 2 * each + [1] * 2 * each
    asked = [(case["prefix"], name) for name in ("piece_after_middle", "line_in_prefix") for case in CASES]
    prefixes = {case["prefix"] for case in CASES}
    assert [pair for pair in layouts if pair[0] in prefixes] == asked
    # What is done is not done again.
    before = len(seen)
    assert run("--cases", cases, "--decoder", "served")[0] == 0
    assert len(seen) == before


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
        code, results, err = run("--cases", cases, "--peer", f"llamacpp={url}", "--decoder", "none", "-n", "6")
    assert (code, err) == (0, "")
    (found,) = results["decoders"].values()
    assert found["settings"] == {
        "peer": "llamacpp",
        "url": url,
        "model": "coder.gguf",
        "num_drafts": 1,
        "max_tokens": 6,
    }
    assert (found["exact_line"], found["forward_rows"]) == ({"first": 0.5, "any": 0.5}, 1)
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
        ((), "Name either a file of cases"),
        (("--from-source", ".", "--cases", "x"), "Name either a file of cases"),
        (("--cases", "none.jsonl"), "none.jsonl cannot be read"),
        (("--from-source", ".", "--kind", "end"), "--kind must be one of indent, mid, word"),
        (("--cases", "CASES", "--context-lines", "50"), "--context-lines must be BEFORE,AFTER"),
        (("--cases", "CASES", "--decoder", "served document_start=off"), "got 'document_start'"),
        (("--cases", "CASES", "--decoder", "greedy"), "gaps are filled by the decoder served"),
        (("--cases", "CASES", "--decoder", "served tau=2"), "got 'tau'"),
        (("--cases", "CASES", "--decoder", "served layout=upside_down"), "layout must be one of line_in_prefix"),
        (
            ("--cases", "CASES", "--peer", "openai=http://x"),
            "--peer must be KIND=URL with KIND one of superdraft, llamacpp",
        ),
        (("--cases", "CASES", "--peer", "llamacpp=http://127.0.0.1:9"), "no model list at /v1/models"),
    ],
)
def test_expected_errors_are_one_line(run, cases, args, message):
    code, results, err = run(*(cases if arg == "CASES" else arg for arg in args))
    assert (code, results) == (2, None)
    assert err.count("\n") == 1
    assert message in err
