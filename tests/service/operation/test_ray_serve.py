"""`superdraft serve --ray-replicas 2` in processes of its own, with a tiny model. One replica is killed."""

import collections
import contextlib
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from support.models import tiny_model_folder
from support.serving import MAIN, metrics_of
from support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'"
)

_URL = re.compile(r"on (http://[^\s,]+), docs at")
LONG_START = "a text that is long enough to be told from others by its first words"
_REPLICA_TITLE = "ray::ServeReplica"
NUM_CLIENTS = 6
NUM_SESSIONS = 24  # a hash chooses the replica: six sessions had the same one in 5 % of the starts


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL, and the process."""
    folder = tmp_path_factory.mktemp("ray")
    model = tiny_model_folder(folder, "llama", max_position_embeddings=2048, num_hidden_layers=24)  # slow enough
    command = [
        sys.executable,
        "-c",
        MAIN,
        "serve",
        "--ray-replicas",
        "2",
        "--model",
        str(model),
        "--ngram-model",
        "none",
    ]
    command += ["--port", "0", "--kv-memory", "64MiB", "--num-slots", "8", "--log-level", "warning"]
    command += ["--default-max-branches", "1"]  # then slots count requests
    command += ["--ray-replicas", "2", "--ray-replica-cpus", "0.1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SUPERDRAFT_", "RAY_"))}
    log = folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        assert eventually(lambda: _URL.search(log.read_text()) or process.poll() is not None)
        found = _URL.search(log.read_text())
        assert found, log.read_text()
        yield found[1], process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
        process.kill()
        process.wait()
    assert eventually(lambda: not replica_pids())


def replica_pids():
    """Process ids of the replicas among the descendants of this process, oldest first."""
    parents, replicas = {}, []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            stat = (folder / "stat").read_text()
            title = (folder / "cmdline").read_text()
        except OSError:  # the process has ended
            continue
        pid, rest = int(folder.name), stat.rpartition(")")[2].split()
        parents[pid] = int(rest[1])
        if title.startswith(_REPLICA_TITLE) and rest[0] != "Z":
            replicas.append(pid)
    return sorted(pid for pid in replicas if _descends(pid, parents))


def _descends(pid, parents):
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = parents.get(pid, 0)
    return False


def last_event(text):
    """The last event of a stream before `[DONE]`."""
    *_, last, done = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    if done != "[DONE]":
        raise ValueError("the stream does not end with [DONE]")
    return json.loads(last)


class Clients:
    """Clients that ask again as soon as they are answered, every other one for a stream. The context ends them."""

    def __init__(self, url):
        self.num_sent, self.ends = 0, collections.Counter()
        self._url, self._lock, self._stopping = url, threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(i,)) for i in range(NUM_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask_on(self, number):
        # Requests without a session leave room for the sessions of other tests.
        headers = {"x-session-id": f"client {number}"}
        with httpx.Client(base_url=self._url, headers=headers) as http:
            for turn in itertools.count():
                if self._stopping.is_set():
                    return
                with self._lock:
                    self.num_sent += 1
                end = self._ask(http, f"{number} {turn}", is_stream=number % 2 == 1)
                with self._lock:
                    self.ends[end] += 1

    def _ask(self, http, prompt, *, is_stream):
        body = {"prompt": prompt, "max_tokens": 40, "logit_bias": {"0": -100}, "stream": is_stream}
        try:
            answer = http.post("/v1/drafts", json=body)
        except httpx.HTTPError as error:
            return type(error).__name__
        said = last_event(answer.text) if answer.is_success and is_stream else answer.json()
        return said["error"]["code"] if "error" in said else "drafts"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in self._threads)
        assert sum(self.ends.values()) == self.num_sent  # each request had one end


def test_a_session_stays_on_its_replica_and_others_are_spread(server):
    url, _ = server
    by_session = collections.defaultdict(set)
    with httpx.Client(base_url=url) as http:
        for turn, session in itertools.product(range(4), range(NUM_SESSIONS)):
            body = {"prompt": f"session {session}: {'x' * turn}", "max_tokens": 2}
            headers = {}
            if session % 3 == 0:
                headers["x-session-id"] = f"s{session}"
            elif session % 3 == 1:
                body["session_id"] = f"s{session}"
            else:  # the beginning of the document tells
                body["prompt"] = f"session {session}: {LONG_START} {turn}"
            answer = http.post("/v1/drafts", json=body, headers=headers)
            assert answer.status_code == 200
            assert len(answer.headers.get_list("x-request-id")) == 1
            by_session[session].add(answer.headers["x-superdraft-replica"])
    assert all(len(replicas) == 1 for replicas in by_session.values())
    assert len(set.union(*by_session.values())) == 2


def test_errors_and_operators_routes_are_as_without_ray(server):
    url, _ = server
    with httpx.Client(base_url=url) as http:
        assert http.get("/ready").json()["status"] == "ready"
        assert http.get("/no/such").json()["error"]["code"] == "route_not_found"
        refused = http.post("/v1/drafts", json={"prompt": "x", "num_drafts": 0}, headers={"x-request-id": "mine"})
        assert (refused.status_code, refused.json()["request_id"]) == (400, "mine")
        assert refused.headers.get_list("x-request-id") == ["mine"]
        assert http.get("/-/healthz").text == "success"


def test_a_client_that_leaves_cancels_its_drafts(server):
    url, _ = server
    headers = {"x-session-id": "leaver"}
    with httpx.Client(base_url=url, headers=headers) as http:
        before = metrics_of(url)["superdraft_cancelled_total"]
        body = {"prompt": "x", "max_tokens": 400, "logit_bias": {"0": -100}}
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/drafts", json=body, timeout=0.3)

        assert eventually(lambda: metrics_of(url)["superdraft_cancelled_total"] == before + 1)
        assert eventually(lambda: metrics_of(url)["superdraft_used_slots"] == 0)


def test_a_killed_replicas_requests_are_told_so_and_it_comes_back(server):
    url, _ = server
    with Clients(url) as clients:
        assert eventually(lambda: clients.ends["drafts"] >= 2 * NUM_CLIENTS)
        before = replica_pids()
        os.kill(before[0], signal.SIGKILL)
        assert eventually(lambda: len(set(replica_pids()) - set(before)) == 1)
        answered = clients.ends["drafts"]
        assert eventually(lambda: clients.ends["drafts"] >= answered + NUM_CLIENTS)
    assert set(clients.ends) <= {"drafts", "replica_lost"}


def test_sigterm_under_load(server):
    """The last test: it ends the server."""
    url, process = server
    with Clients(url) as clients:
        assert eventually(lambda: clients.ends["drafts"] >= 2 * NUM_CLIENTS)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    assert clients.ends["replica_lost"] == 0  # what ran was finished; what came later was refused, or found nobody
    assert clients.ends["shutting_down"] > 0
    # The others came when the proxy had gone, or just as it went.
    assert set(clients.ends) <= {"drafts", "shutting_down", "ConnectError", "ReadError", "RemoteProtocolError"}
