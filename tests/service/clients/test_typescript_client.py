"""The TypeScript client in Node.js: its own tests, its types, its built modules, and requests to a running server.

The built modules are committed, because the server's page loads them and serving needs no Node.js. Tests that compile
need `npm ci` in client/typescript, or TYPESCRIPT_NODE_MODULES naming a folder that has the package `typescript`.
"""

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from support.engine import FakeEngine
from support.readers import wait_for_readers
from support.serving import serving
from support.typescript import BUILT, NODE, SOURCES, needs_node
from support.waiting import PATIENCE_S, eventually

from superdraft.client.wire import DraftsOptions
from superdraft.decoding.errors import SequenceFailedError
from superdraft.server.app import create_app
from superdraft.server.settings import Settings

pytestmark = needs_node

TESTS = Path(__file__).parents[2] / "node"
COMPILER = Path(os.environ.get("TYPESCRIPT_NODE_MODULES", SOURCES / "node_modules"), "typescript", "bin", "tsc")

needs_compiler = pytest.mark.skipif(
    not COMPILER.is_file(), reason=f"{COMPILER} does not exist: run `npm ci` in client/typescript"
)


def compiled(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(NODE), str(COMPILER), "--project", str(SOURCES), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_its_own_tests_pass():
    done = subprocess.run(
        [NODE, "--test", TESTS / "session.test.mjs"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "# fail 0" in done.stdout


def test_every_source_has_a_built_module_that_imports_only_built_modules():
    sources = {path.stem for path in (SOURCES / "src").glob("*.ts")}
    assert sources == {path.stem for path in BUILT.iterdir()}
    assert not any('.ts"' in path.read_text() for path in BUILT.iterdir())


@needs_compiler
def test_the_built_modules_are_those_of_the_sources(tmp_path):
    """Otherwise: `npm run page` in client/typescript."""
    done = compiled("--outDir", tmp_path, "--declaration", "false")
    assert done.returncode == 0, done.stdout
    built = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert built == {path.name: path.read_text() for path in BUILT.iterdir()}


@needs_compiler
@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("const [draft] = (await client.complete('a', { num_drafts: 2, trim: 'word' })).drafts; draft?.text;", None),
        ("for await (const snapshot of await client.stream('a')) snapshot.stable_text;", None),
        ("new LiveTypingSession(client, { drafts: { trigger: 'invoked' } }).display.ghost?.text;", None),
        ("await client.complete('a', { num_draft: 2 });", "num_draft"),
        ("await client.complete(7);", "number"),
        ("(await client.complete('a')).drafts[0].text;", "undefined"),
        ("await client.feedback('id', 'seen');", "seen"),
    ],
)
def test_types(tmp_path, line, error):
    """What users get: declarations, against which this line is checked."""
    assert compiled("--outDir", tmp_path / "dist").returncode == 0
    imports = "import { LiveTypingSession, Superdraft } from './dist/index.js';\n"
    (tmp_path / "use.ts").write_text(f"{imports}const client = new Superdraft('x');\nLiveTypingSession;\n{line}\n")
    options = ["--strict", "--noUncheckedIndexedAccess", "--noEmit", "--target", "es2022", "--module", "nodenext"]
    (tmp_path / "package.json").write_text('{"type": "module"}')
    done = subprocess.run(
        [NODE, COMPILER, *options, "--ignoreConfig", "--types", "", tmp_path / "use.ts"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode == 0) == (error is None), done.stdout
    assert error is None or error in done.stdout


def test_its_request_options_are_those_of_the_python_client():
    source = (SOURCES / "src" / "models.ts").read_text()
    body = source.partition("export interface DraftsOptions {")[2].partition("\n}")[0]
    names = {line.strip().partition("?:")[0] for line in body.splitlines() if "?:" in line}
    assert names == set(DraftsOptions.__annotations__) | {"num_drafts", "max_tokens"}


def without(fields: dict, name: str) -> dict:
    return {key: value for key, value in fields.items() if key != name}


@pytest.fixture(scope="module")
def engine():
    return FakeEngine()


@contextlib.contextmanager
def redirecting(url: str) -> Iterator[str]:
    """A server that sends every request elsewhere, with its body."""

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(307)
            self.send_header("location", url + self.path)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def results(module_patch, engine):
    """What the script got, by task. Prompts are tokens of one character: "fail" makes the engine fail half-way; "abort"
    and "leave" never end by themselves.
    """

    wait_for_readers(engine, module_patch)
    keep_up = engine.on_step

    def step():
        keep_up()
        for job in engine.jobs.values():
            if job.token_ids == tuple(b"fail") and job.num_steps == 2:
                engine.fail[job.request_id] = SequenceFailedError("No numbers.")
            if job.token_ids in (tuple(b"abort"), tuple(b"leave")):
                job.num_steps = min(job.num_steps, 2)

    engine.on_step = step
    with serving(create_app(Settings(), engine, model_name="tiny")) as url, redirecting(url) as other_url:
        done = subprocess.run(
            [NODE, TESTS / "client.mjs", (BUILT / "index.js").as_uri()],
            env={**os.environ, "SERVER_URL": url, "REDIRECTING_URL": other_url},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert eventually(lambda: not engine.jobs)
    return {line["name"]: line.get("result") for line in map(json.loads, done.stdout.splitlines())}


def test_drafts(results):
    texts = [" red0 red1 red2", " green0 green1 green2", " blue0 blue1 blue2"]
    assert [draft["text"] for draft in results["complete"]["drafts"]] == texts
    assert results["complete"] | {"id": "", "timings": {}} == results["resultAlone"] | {"id": "", "timings": {}}
    assert not results["baseUrl"].endswith(("/", "/v1"))


def test_stream(results):
    snapshots, answer = results["stream"]["snapshots"], results["stream"]["answer"]
    assert 1 <= len(snapshots) <= 3
    assert {snapshot["id"] for snapshot in snapshots} == {answer["id"]}
    assert snapshots[0]["drafts"][0]["text"] == " red0"
    assert answer["drafts"][0]["text"] == " red0 red1 red2 red3"


def test_what_the_server_has(results):
    assert results["models"][0]["id"] == "tiny"
    assert results["limits"]["max_num_drafts"] > 0
    assert results["ngramModels"] == [] or results["ngramModels"][0]["name"]


def test_feedback(results):
    assert [(receipt["rank"], receipt["counted"]) for receipt in results["feedback"]] == [
        (1, True),
        (1, True),
        (1, False),
    ]


@pytest.mark.parametrize(
    ("task", "name", "code"),
    [
        ("badRequest", "BadRequestError", "invalid_value"),
        ("badStream", "BadRequestError", "invalid_value"),
        ("notFound", "NotFoundError", "completion_not_found"),
        ("brokenStream", "ServerError", "sequence_failed"),
    ],
)
def test_errors_of_the_server(results, task, name, code):
    assert (results[task]["name"], results[task]["code"], results[task]["hasRequestId"]) == (name, code, True)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("unreachable", "ConnectionFailedError"),
        ("redirected", "ConnectionFailedError"),  # neither the text nor the key goes elsewhere
        ("timeout", "RequestTimeoutError"),
        ("otherServer", "InvalidAnswerError"),
        ("otherStream", "InvalidAnswerError"),
        ("endedStream", "StreamBrokenError"),
        ("garbledStream", "InvalidAnswerError"),
    ],
)
def test_other_errors(results, task, name):
    assert results[task]["name"] == name


def test_retries(results):
    assert results["retries"] == {"error": None, "sent": 3}
    for task in ("toldNotTo", "toldTooLong"):
        assert (results[task]["sent"], results[task]["error"]["name"]) == (1, "OverloadedError")


def test_an_aborted_request_and_a_left_stream_are_cancelled(results, engine):
    assert results["aborted"] == "TimeoutError"  # the reason of the caller's own signal
    assert results["left"] >= 1
    ids = {bytes(job.token_ids).decode(): job.request_id for job in engine.seen}
    assert {ids["abort"], ids["leave"]} <= set(engine.cancelled)


def test_typing(results):
    assert results["typing"] == {
        "first": " red0 red1 red2",
        "rest": "d0 red1 red2",
        "accepted": "type red0 red1 red2",
        "grew": True,
    }


def test_typing_asks_for_probable_drafts_and_its_user_for_all(results):
    automatic, invoked = results["typingFields"]
    assert (automatic["trigger"], automatic["min_probability_shown"], automatic["suffix"]) == (
        "automatic",
        0.5,
        " here",
    )
    assert invoked == {**without(automatic, "min_probability_shown"), "trigger": "invoked"}
    assert (automatic["prompt"], automatic["num_drafts"], automatic["max_tokens"]) == ("type", 3, 10)
