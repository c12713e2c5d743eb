"""A real process with a tiny model under load: SIGTERM, two signals, SIGKILL. What clients saw is counted."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx
import pytest
from support.models import tiny_model_folder
from support.serving import eventually

_SERVE = "from superdraft.server.cli import main; main()"
_URL = re.compile(r"on (http://[^\s,]+), docs at")
NUM_CLIENTS = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return tiny_model_folder(folder, "llama", max_position_embeddings=2048, num_hidden_layers=24)  # slow enough


class Server:
    """`superdraft serve` in a process of its own."""

    def __init__(self, model, log, port=0, **options):
        flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        command = [sys.executable, "-c", _SERVE, "serve", "--model", str(model), "--ngram-model", "none"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPERDRAFT_")}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, "--port", str(port), "--kv-memory", "64MiB", *flags], stderr=out, env=environment
            )
        assert eventually(lambda: _URL.search(log.read_text()) is not None or self.process.poll() is not None, 60)
        found = _URL.search(log.read_text())
        assert found, log.read_text()
        self.url = found[1]
        self.port = int(self.url.rpartition(":")[2])

    def num_running(self):
        return httpx.get(f"{self.url}/v1/stats").json()["running"]


@pytest.fixture
def serve(model, tmp_path):
    with contextlib.ExitStack() as stack:

        def start(**options):
            server = Server(model, tmp_path / "serve.log", **options)
            stack.callback(server.process.wait, 10)
            stack.callback(server.process.kill)
            return server

        yield start


class Clients:
    """People who ask again as soon as they are answered. What they saw is counted."""

    def __init__(self, url, max_tokens, once=False):
        self.seen = Counter()
        self.codes = Counter()
        self.num_sent = 0
        self._body = {"max_tokens": max_tokens, "logit_bias": {"0": -100}}  # 0: the end of the text
        self._num_turns = 1 if once else 10_000
        self._url = url
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(i,)) for i in range(NUM_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask_on(self, number):
        with httpx.Client(base_url=self._url, timeout=20) as http:
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

    def stop(self):
        self._stopping.set()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        assert sum(self.seen.values()) == self.num_sent  # each request had one end


def test_sigterm_under_load(serve):
    server = serve(shutdown_grace_s=5)
    clients = Clients(server.url, max_tokens=40)
    assert eventually(lambda: clients.seen[200] >= NUM_CLIENTS, 30)
    with httpx.Client(base_url=server.url) as watcher:
        assert watcher.get("/ready").status_code == 200
        before, running = clients.seen[200], clients.num_sent - sum(clients.seen.values())
        server.process.send_signal(signal.SIGTERM)
        readiness = []
        with contextlib.suppress(httpx.HTTPError):
            while not readiness or readiness[-1] != 503:
                readiness.append(watcher.get("/ready").status_code)
    assert server.process.wait(30) == -signal.SIGTERM
    clients.stop()
    assert readiness[-1] == 503  # it still listened while drafts were running
    # Every draft that was running was finished; every client then heard 503, or found nobody there.
    assert clients.seen[200] >= before + running - 1
    assert set(clients.seen) <= {200, 503, "ConnectError", "ReadError", "RemoteProtocolError"}
    assert clients.seen[503] > 0
    assert clients.seen["ReadError"] + clients.seen["RemoteProtocolError"] <= 1  # sent while a connection was closed
    assert set(clients.codes) <= {None, "shutting_down"}


def test_what_is_not_finished_in_time_is_told_so(serve):
    server = serve(shutdown_grace_s=0.2)
    clients = Clients(server.url, max_tokens=500, once=True)  # seconds
    assert eventually(lambda: server.num_running() == NUM_CLIENTS, 30)
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(30)
    clients.stop()
    assert clients.seen == {503: NUM_CLIENTS}
    assert clients.codes == {"shutting_down": NUM_CLIENTS}


def test_a_second_signal_ends_it_at_once(serve):
    server = serve(shutdown_grace_s=60)
    clients = Clients(server.url, max_tokens=500, once=True)
    assert eventually(lambda: server.num_running() == NUM_CLIENTS, 30)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(30)  # half of the grace time
    clients.stop()
    assert set(clients.seen) <= {503, "ReadError", "RemoteProtocolError"}
    assert sum(clients.seen.values()) == NUM_CLIENTS


def test_sigkill_and_restart_on_the_same_port(serve):
    server = serve()
    clients = Clients(server.url, max_tokens=30)
    assert eventually(lambda: clients.seen[200] >= NUM_CLIENTS, 30)
    server.process.kill()
    server.process.wait(10)
    clients.stop()
    # Broken off or refused, and nothing else: no half answer was taken for a whole one.
    assert set(clients.seen) <= {200, "ReadError", "RemoteProtocolError", "ConnectError"}
    broken = clients.seen["ReadError"] + clients.seen["RemoteProtocolError"]
    assert 1 <= broken <= broken + clients.seen["ConnectError"] == NUM_CLIENTS
    again = serve(port=server.port)
    after = Clients(again.url, max_tokens=10)
    assert eventually(lambda: after.seen[200] >= 3 * NUM_CLIENTS, 30)
    after.stop()
    assert set(after.seen) == {200}
