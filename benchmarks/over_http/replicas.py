"""Replicas on Ray Serve: whether sessions stay on one replica, and what is lost when one is killed.

Two phases. *Affinity*: sessions type key by key, with the header that names the session and without it. *Kill*: a
working replica is killed (SIGKILL) under load. Every request is counted by what its client saw.
"""

import asyncio
import itertools
import json
import os
import signal
import statistics
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from superdraft.benchmarks.options import AsJson, ServerDtype, ServerModel
from superdraft.benchmarks.over_http.clients import load
from superdraft.benchmarks.over_http.local_server import NEVER_REFUSE, http_client, local_server, serve_options
from superdraft.benchmarks.summary import report
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.server.cli.settings_options import setting
from superdraft.server.errors import CommandError

NUM_REPLICAS = 3
NUM_SLOTS = 8
MAX_TOKENS = 24
FIRST_CHARS = 40
NUM_KEYS = 12
RECOVERY_TIMEOUT_S = 180.0
CALM_S = 5.0  # seconds of load before and after each event
POLL_S = 0.1

_OPTIONS = (
    *serve_options(
        ray_replicas=NUM_REPLICAS, num_slots=NUM_SLOTS, ray_replica_cpus=0.1, log_level="debug", log_format="json"
    ),
    *NEVER_REFUSE,
)
_REPLICA_HEADER = "x-superdraft-replica"
_REPLICA_TITLE = "ray::ServeReplica"


@dataclass(slots=True)
class Outcomes:
    """What clients saw.

    Attributes:
        num_sent: requests sent.
        kinds: requests by outcome: "drafts", the code of an error object, "no error object", or the client's error.
        first_seen_s: time of each replica's first answer, by `time.monotonic`.
    """

    num_sent: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    first_seen_s: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The counts."""
        return {
            "sent": self.num_sent,
            "ended": sum(self.kinds.values()),
            "drafts": self.kinds["drafts"],
            "errors": {kind: count for kind, count in self.kinds.items() if kind != "drafts"},
        }


def main(
    sessions: Annotated[int, typer.Option(min=1, help="Sessions typing at the same time.")] = 12,
    clients: Annotated[int, typer.Option(min=1, help="Clients that make the load.")] = 12,
    model: ServerModel = None,
    dtype: ServerDtype = None,
    ngram_model: Annotated[str | None, setting("ngram_model")] = None,
    kv_memory: Annotated[str, setting("kv_memory")] = "256MiB",
    as_json: AsJson = False,
) -> None:
    """Kill a Ray Serve replica under load. Exit code 1 if a request is lost that should not be."""
    options = [
        *_OPTIONS,
        *serve_options(model=model, dtype=dtype, ngram_model=ngram_model, kv_memory=kv_memory),
    ]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "serve.log"
        with local_server(options, log) as url:
            affinity = [asyncio.run(_affinity(url, sessions, is_named)) for is_named in (True, False)]
            kill = asyncio.run(_kill(url, clients))
        kill["run_twice"] = _num_run_twice(log)
    kept = _promises(affinity, kill)
    report(__doc__, {"serve_options": options}, as_json, kept=kept, affinity=affinity, kill=kill)


def _promises(affinity: Sequence[dict[str, Any]], kill: dict[str, Any]) -> dict[str, bool]:
    """The promises, and whether each was kept."""
    return {
        "a session stays on its replica": affinity[0]["same_replica_share"] == 1.0,
        "affinity saves prompt tokens": affinity[0]["cached_share"] > affinity[1]["cached_share"],
        "kill: every request has one outcome": kill["sent"] == kill["ended"],
        "kill: every lost request gets an error object": set(kill["errors"]) <= {"replica_lost", "overloaded"},
        "no request is run twice": kill["run_twice"] == 0,
    }


# Affinity


async def _affinity(url: str, num_sessions: int, is_named: bool) -> dict[str, Any]:
    """Let sessions type a text each, key by key, all at the same time."""
    async with http_client(url) as http:
        replicas = await asyncio.gather(*(_type(http, number, is_named) for number in range(num_sessions)))
    moves = [before == after for session in replicas for (before, _, _), (after, _, _) in itertools.pairwise(session)]
    later = [(cached, prompt) for session in replicas for _, cached, prompt in session[1:]]
    return {
        "session_header": is_named,
        "sessions": num_sessions,
        "key_presses": sum(map(len, replicas)),
        "replicas_of_a_session": statistics.fmean(len({name for name, _, _ in session}) for session in replicas),
        "same_replica_share": round(statistics.fmean(moves), 4),
        "cached_share": round(sum(cached for cached, _ in later) / sum(prompt for _, prompt in later), 4),
    }


async def _type(http: httpx.AsyncClient, number: int, is_named: bool) -> list[tuple[str, int, int]]:
    """Type in one session; returns the replica, cached tokens and prompt tokens of each key press."""
    text = f"{uuid.uuid4()}: {TEXTS[number % len(TEXTS)]}"
    headers = {"x-session-id": f"session-{number}"} if is_named else {}
    seen = []
    for end in range(FIRST_CHARS, FIRST_CHARS + NUM_KEYS):
        body = {"prompt": text[:end], "max_tokens": 4}
        answer = await http.post("/v1/drafts", json=body, headers=headers)
        answer.raise_for_status()
        usage = answer.json()["usage"]
        seen.append((answer.headers[_REPLICA_HEADER], usage["cached_tokens"], usage["prompt_tokens"]))
    return seen


# Kill


async def _kill(url: str, num_clients: int) -> dict[str, Any]:
    async with _load(url, num_clients) as outcomes:
        await asyncio.sleep(CALM_S)
        before = set(outcomes.first_seen_s)
        victim = replica_pids()[0]
        os.kill(victim, signal.SIGKILL)
        killed_s = time.monotonic()
        while len(outcomes.first_seen_s) == len(before):
            if time.monotonic() > killed_s + RECOVERY_TIMEOUT_S:
                raise CommandError(f"no new replica answered within {RECOVERY_TIMEOUT_S:g} s after one was killed.")
            await asyncio.sleep(POLL_S)
        recovered_s = max(outcomes.first_seen_s.values())
        await asyncio.sleep(CALM_S)
    return {**outcomes.row(), "replicas_before": len(before), "recovered_after_s": round(recovered_s - killed_s, 1)}


# Load


@asynccontextmanager
async def _load(url: str, num_clients: int) -> AsyncIterator[Outcomes]:
    """Clients that send the next request as soon as they are answered; every other client requests streams."""
    outcomes, turns = Outcomes(), itertools.count()
    async with http_client(url) as http:

        async def send(number: int) -> None:
            prompt = f"{number} {next(turns)}: {TEXTS[number % len(TEXTS)][:60]}"
            await _ask(http, prompt, number % 2 == 1, outcomes)

        async with load(num_clients, send):
            yield outcomes


async def _ask(http: httpx.AsyncClient, prompt: str, is_stream: bool, outcomes: Outcomes) -> None:
    outcomes.num_sent += 1
    body = {"prompt": prompt, "max_tokens": MAX_TOKENS, "stream": is_stream}
    try:
        answer = await http.post("/v1/drafts", json=body)
    except httpx.HTTPError as error:
        outcomes.kinds[type(error).__name__] += 1
        return
    if replica := answer.headers.get(_REPLICA_HEADER):
        outcomes.first_seen_s.setdefault(replica, time.monotonic())
    try:
        said = last_event(answer.text) if answer.is_success and is_stream else answer.json()
        outcomes.kinds[said["error"]["code"] if "error" in said else "drafts"] += 1
    except (ValueError, KeyError, IndexError, TypeError):
        outcomes.kinds["no error object"] += 1


def last_event(text: str) -> Any:
    """The last event of a stream before `[DONE]`."""
    *_, last, done = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    if done != "[DONE]":
        raise ValueError("the stream does not end with [DONE]")
    return json.loads(last)


def _num_run_twice(log: Path) -> int:
    """Number of requests that two replicas answered, according to their log lines."""
    ends: Counter[str] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        _, is_json, fields = line.partition("{")
        if is_json and '"event": "request"' in fields:
            ends[json.loads("{" + fields)["request_id"]] += 1
    if not ends:
        raise CommandError("the server's log has no request lines.")
    return sum(count > 1 for count in ends.values())


# Processes


def replica_pids() -> list[int]:
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


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = parents.get(pid, 0)
    return False
