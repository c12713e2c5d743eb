"""A real process with a tiny model under load: signals, SIGKILL, a dead engine. What clients saw is counted."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import httpx
import pytest
from support.models import tiny_model_folder
from support.serving import MAIN, metrics_of
from support.waiting import PATIENCE_S, eventually

# The engine's steps fail as soon as a file is there, and no request can be dropped.
_SERVE_WITH_BROKEN_ENGINE = """
import os
from superdraft.decoding.engine.engine import Engine
def step(self, step=Engine.step):
    if os.path.exists({trigger!r}):
        raise RuntimeError("broken")
    return step(self)
Engine.step, Engine.cancel = step, lambda self, request_id: False
"""
_URL = re.compile(r"on (http://[^\s,]+), docs at")
NUM_CLIENTS = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return tiny_model_folder(folder, "llama", max_position_embeddings=2048, num_hidden_layers=24)  # slow enough


class Server:
    """`superdraft serve` in a process of its own."""

    def __init__(self, model, log, port=0, code=MAIN, **options):
        flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        command = [sys.executable, "-c", code, "serve", "--model", str(model), "--ngram-model", "none"]
        for limit in ("--target-latency-ms", "--queue-timeout-ms"):  # refuses nobody for being slow
            command += [limit, str(PATIENCE_S * 1000)]
        command += ["--num-threads", "1", "--default-max-branches", "1"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPERDRAFT_")}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, "--port", str(port), "--kv-memory", "64MiB", *flags],
                stderr=out,
                env=environment,
                # A shell's background job ignores Ctrl-C, and so would the server if the tests run in one.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self._log = log

    def wait_until_it_listens(self):
        def url():
            return _URL.search(self._log.read_text())

        assert eventually(lambda: url() is not None or self.process.poll() is not None)
        assert url(), self._log.read_text()
        self.url = url()[1]
        self.port = int(self.url.rpartition(":")[2])

    def num_in_engine(self):
        """Requests that it has taken and not answered."""
        totals = metrics_of(self.url)
        return sum(
            totals[f"superdraft_{name}"] for name in ("running_sequences", "waiting_sequences", "waiting_requests")
        )


@pytest.fixture
def serve(model, tmp_path):
    with contextlib.ExitStack() as stack:

        def start(**options):
            server = Server(model, tmp_path / "serve.log", **options)
            stack.callback(server.process.wait, PATIENCE_S)
            stack.callback(server.process.kill)
            server.wait_until_it_listens()
            return server

        yield start


class Clients:
    """People who ask again as soon as they are answered. What they saw is counted."""

    def __init__(self, url, max_tokens, once=False, number=NUM_CLIENTS, headers=None):
        self.seen = Counter()
        self.codes = Counter()
        self.num_sent = 0
        self._body = {"max_tokens": max_tokens, "logit_bias": {"0": -100}}  # 0: the end of the text
        self._num_turns = 1 if once else 10_000
        self._url = url
        self._headers = headers
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(i,)) for i in range(number)]
        for thread in self._threads:
            thread.start()

    def _ask_on(self, number):
        with httpx.Client(base_url=self._url, headers=self._headers) as http:
            for turn in range(self._num_turns):
                if self._stopping.is_set():
                    return
                with self._lock:
                    self.num_sent += 1
                try:
                    answer = http.post("/v1/drafts", json={"prompt": f"{number} {turn}", **self._body})
                except httpx.HTTPError as error:
                    outcome, code = type(error).__name__, None
                else:
                    outcome = answer.status_code
                    code = None if answer.is_success else answer.json()["error"]["code"]
                with self._lock:
                    self.seen[outcome] += 1
                    self.codes[code] += 1
                if outcome != 200:
                    return

    def stop(self, asks_on=False):
        """Wait for their last answers; with `asks_on`, until each has one that is not 200."""
        if not asks_on:
            self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert sum(self.seen.values()) == self.num_sent  # each request had one end


def test_sigterm_under_load(serve):
    server = serve(shutdown_grace_s=PATIENCE_S)
    keeper = Clients(server.url, max_tokens=500, once=True, number=1)  # runs until the others have heard 503
    assert eventually(lambda: server.num_in_engine() == 1)
    # Each request on a connection of its own: one that is kept may be closed just when the next request is sent on it.
    clients = Clients(server.url, max_tokens=20, headers={"connection": "close"})
    assert eventually(lambda: clients.seen[200] >= NUM_CLIENTS)
    with httpx.Client(base_url=server.url) as watcher:
        assert watcher.get("/ready").status_code == 200
        before, running = clients.seen[200], server.num_in_engine()
        server.process.send_signal(signal.SIGTERM)
        assert eventually(lambda: watcher.get("/ready").status_code == 503)  # it listens while drafts run
    clients.stop(asks_on=True)
    keeper.stop()
    assert server.process.wait(PATIENCE_S) == 0
    # Every draft that was running was finished; every client then heard 503.
    assert keeper.seen == {200: 1}
    assert clients.seen[200] + keeper.seen[200] >= before + running
    assert set(clients.seen) == {200, 503}
    assert clients.seen[503] == NUM_CLIENTS
    assert set(clients.codes) == {None, "shutting_down"}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_while_the_model_loads_ends_it_without_a_traceback(model, tmp_path, signum, code):
    slow = "from superdraft.server import serving; import time; serving.load_app = lambda _: time.sleep(999); "
    server = Server(model, tmp_path / "serve.log", code=slow + MAIN)
    log = tmp_path / "serve.log"
    try:
        assert eventually(lambda: log.read_text() == f"Loading {model} ...\n")  # at once
        assert eventually(lambda: _is_caught(server.process.pid, signal.SIGTERM))
        server.process.send_signal(signum)
        assert server.process.wait(PATIENCE_S) == code
    finally:
        server.process.kill()
        server.process.wait(PATIENCE_S)
    assert "Traceback" not in log.read_text()


def _is_caught(pid, signum):
    (caught,) = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) >> (signum - 1) & 1)


def test_ctrl_c_has_the_code_that_shells_expect(serve):
    server = serve()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(PATIENCE_S) == 130


def test_what_is_not_finished_in_time_is_told_so(serve):
    server = serve(shutdown_grace_s=0.2)
    clients = Clients(server.url, max_tokens=500, once=True)  # many seconds
    assert eventually(lambda: server.num_in_engine() == NUM_CLIENTS)
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(PATIENCE_S)
    clients.stop()
    assert clients.seen == {503: NUM_CLIENTS}
    assert clients.codes == {"shutting_down": NUM_CLIENTS}


def test_a_second_signal_ends_it_at_once(serve):
    server = serve(shutdown_grace_s=10 * PATIENCE_S)
    clients = Clients(server.url, max_tokens=500, once=True)
    assert eventually(lambda: server.num_in_engine() == NUM_CLIENTS)
    server.process.send_signal(signal.SIGTERM)
    assert eventually(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(PATIENCE_S)  # far less than the grace
    clients.stop()
    assert set(clients.seen) <= {503, "ReadError", "RemoteProtocolError"}  # not 200: no draft was finished
    assert sum(clients.seen.values()) == NUM_CLIENTS


def test_sigkill_and_restart_on_the_same_port(serve):
    server = serve()
    running = Clients(server.url, max_tokens=500, once=True, number=1)
    assert eventually(lambda: server.num_in_engine() == 1)
    clients = Clients(server.url, max_tokens=20)
    assert eventually(lambda: clients.seen[200] >= NUM_CLIENTS)
    server.process.kill()
    server.process.wait(PATIENCE_S)
    clients.stop(asks_on=True)
    running.stop()
    # Broken off or refused, and nothing else: no half answer was taken for a whole one.
    assert set(running.seen) <= {"ReadError", "RemoteProtocolError"}
    assert set(clients.seen) <= {200, "ReadError", "RemoteProtocolError", "ConnectError"}
    broken = clients.seen["ReadError"] + clients.seen["RemoteProtocolError"]
    assert broken + clients.seen["ConnectError"] == NUM_CLIENTS
    again = serve(port=server.port)
    after = Clients(again.url, max_tokens=10)
    assert eventually(lambda: after.seen[200] >= 3 * NUM_CLIENTS)
    after.stop()
    assert set(after.seen) == {200}


def test_a_dead_engine_ends_the_process_with_a_code(serve, tmp_path):
    trigger = tmp_path / "broken"
    server = serve(code=_SERVE_WITH_BROKEN_ENGINE.format(trigger=str(trigger)) + MAIN)
    clients = Clients(server.url, max_tokens=500, once=True)
    assert eventually(lambda: server.num_in_engine() == NUM_CLIENTS)
    trigger.touch()
    assert server.process.wait(PATIENCE_S) == 1
    clients.stop()
    assert clients.seen == {500: NUM_CLIENTS}
    log = (tmp_path / "serve.log").read_text()
    assert "engine_thread_failed" in log
    assert "server_failed" in log
