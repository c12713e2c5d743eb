"""Replicas on Ray Serve: do typing sessions stay on one, and what is lost when one is killed, added or taken away.

Three phases. *Affinity*: sessions type key by key, with the header that names the session and without it. *Kill*: under
load a replica that is working is killed (SIGKILL). *Scale*: with the load comes a second and a third replica, and when
it is gone, they go. Every request is counted by what its client saw of it.
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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from superdraft.benchmarks.machine import describe_machine
from superdraft.benchmarks.over_http.local_server import local_server
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.server.errors import CommandError

NUM_REPLICAS = 3
NUM_SLOTS = 8
MAX_TOKENS = 24
FIRST_CHARS = 40
NUM_KEYS = 12
ANSWER_TIMEOUT_S = 60.0
RECOVERY_TIMEOUT_S = 180.0
CALM_S = 5.0  # of load before and after what is to be seen
LOOK_S = 0.1
UPSCALE_DELAY_S = 2.0
DOWNSCALE_DELAY_S = 5.0

_OPTIONS = (
    *(
        "--ray",
        "--num-slots",
        str(NUM_SLOTS),
        "--ray-replica-cpus",
        "0.1",
        "--log-level",
        "info",
        "--log-format",
        "json",
    ),
    # Clients that ask on and on would rather wait than be refused.
    *("--queue-timeout-ms", "60000", "--max-waiting", "1000"),
)
_REPLICA_HEADER = "x-superdraft-replica"
_REPLICA_TITLE = "ray::ServeReplica"


@dataclass(slots=True)
class Outcomes:
    """What clients saw.

    Attributes:
        num_sent: requests.
        kinds: of ends: "drafts", the code of an error in the error shape, "not in the error shape", or the client's
            own error.
        first_seen_s: when each replica answered first, on `time.monotonic`.
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


def main(*, num_sessions: int, num_clients: int, serve_options: list[str], as_json: bool) -> bool:
    """Run the phases against servers that are started here, and print.

    Args:
        num_sessions: in the first phase.
        num_clients: in the others; each asks again as soon as it is answered.
        serve_options: for the servers.
        as_json: print JSON instead of a table.

    Returns:
        Whether the phases went as they should.
    """
    options = [*_OPTIONS, *serve_options]
    fixed = ["--ray-min-replicas", str(NUM_REPLICAS), "--ray-max-replicas", str(NUM_REPLICAS)]
    scaling = ["--ray-min-replicas", "1", "--ray-max-replicas", str(NUM_REPLICAS), "--ray-target-requests", "2"]
    scaling += ["--ray-upscale-delay-s", str(UPSCALE_DELAY_S), "--ray-downscale-delay-s", str(DOWNSCALE_DELAY_S)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "serve.log"
        with local_server([*options, *fixed], log) as url:
            affinity = [asyncio.run(_affinity(url, num_sessions, named)) for named in (True, False)]
            kill = asyncio.run(_kill(url, num_clients))
        kill["run_twice"] = _num_run_twice(log)
        with local_server([*options, *scaling], log) as url:
            scale = asyncio.run(_scale(url, num_clients))
        scale["run_twice"] = _num_run_twice(log)
    kept = {
        "a session stays on its replica": affinity[0]["same_replica_share"] == 1.0,
        "affinity saves prompt tokens": affinity[0]["cached_share"] > affinity[1]["cached_share"],
        "kill: every request has one end": kill["sent"] == kill["ended"],
        "kill: every loss is told in the error shape": set(kill["errors"]) <= {"replica_lost", "overloaded"},
        "nothing is run twice": kill["run_twice"] == scale["run_twice"] == 0,
        "scale: nothing is lost": scale["sent"] == scale["drafts"],
        f"scale: 1 to {NUM_REPLICAS} to 1": scale["most_replicas"] == NUM_REPLICAS and scale["replicas_at_end"] == 1,
    }
    report = {"question": __doc__.splitlines()[0], "machine": describe_machine(), "settings": options}
    _print({**report, "affinity": affinity, "kill": kill, "scale": scale, "kept": kept}, as_json)
    return all(kept.values())


# Affinity


async def _affinity(url: str, num_sessions: int, is_named: bool) -> dict[str, Any]:
    """Sessions that type a text each, one key after the other, all at the same time."""
    async with _client(url) as http:
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
    """One session: replica, cached tokens and prompt tokens of each key press."""
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
            await asyncio.sleep(LOOK_S)
        recovered_s = max(outcomes.first_seen_s.values())
        await asyncio.sleep(CALM_S)
    return {**outcomes.row(), "replicas_before": len(before), "recovered_after_s": round(recovered_s - killed_s, 1)}


# Scale


async def _scale(url: str, num_clients: int) -> dict[str, Any]:
    most, begun_s = 0, time.monotonic()
    async with _load(url, num_clients) as busy:
        while len(busy.first_seen_s) < NUM_REPLICAS and time.monotonic() < begun_s + RECOVERY_TIMEOUT_S:
            await asyncio.sleep(LOOK_S)
        grown_s = time.monotonic()
        most = len(busy.first_seen_s)
        await asyncio.sleep(CALM_S)
    calm_s = time.monotonic()
    async with _load(url, 1) as calm:  # replicas go while somebody asks
        while len(replica_pids()) > 1 and time.monotonic() < calm_s + RECOVERY_TIMEOUT_S:
            await asyncio.sleep(LOOK_S)
        shrunk_s = time.monotonic()
        await asyncio.sleep(CALM_S)
        left = len(replica_pids())
    busy.num_sent += calm.num_sent
    busy.kinds += calm.kinds
    return {
        **busy.row(),
        "most_replicas": most,
        "replicas_at_end": left,
        "grown_after_s": round(grown_s - begun_s, 1),
        "shrunk_after_s": round(shrunk_s - calm_s, 1),
    }


# Load


@asynccontextmanager
async def _client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=ANSWER_TIMEOUT_S) as http:
        yield http


@asynccontextmanager
async def _load(url: str, num_clients: int) -> AsyncIterator[Outcomes]:
    """Clients that ask again as soon as they are answered, every other one for a stream, to their last answer."""
    outcomes, stopping = Outcomes(), asyncio.Event()

    async def ask_on(http: httpx.AsyncClient, number: int) -> None:
        for turn in itertools.count():
            if stopping.is_set():
                return
            await _ask(http, f"{number} {turn}: {TEXTS[number % len(TEXTS)][:60]}", number % 2 == 1, outcomes)

    async with _client(url) as http:
        clients = [asyncio.create_task(ask_on(http, number)) for number in range(num_clients)]
        try:
            yield outcomes
        finally:
            stopping.set()
            await asyncio.gather(*clients)


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
        outcomes.kinds["not in the error shape"] += 1


def last_event(text: str) -> Any:
    """The last event of a stream but one, which is `[DONE]`."""
    *_, last, done = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    if done != "[DONE]":
        raise ValueError("the stream has no end")
    return json.loads(last)


def _num_run_twice(log: Path) -> int:
    """Requests that two replicas have ended, by the replicas' log lines."""
    ends: Counter[str] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        _, is_json, fields = line.partition("{")
        if is_json and '"event": "request"' in fields:
            ends[json.loads("{" + fields)["request_id"]] += 1
    if not ends:
        raise CommandError("the server's log has no lines of requests.")
    return sum(count > 1 for count in ends.values())


# Processes


def replica_pids() -> list[int]:
    """The replicas' processes, those that have begun to load a model first: descendants of this process."""
    parents, replicas = {}, []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            stat = (folder / "stat").read_text()
            title = (folder / "cmdline").read_text()
        except OSError:  # it has ended
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


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 (standard output is the product here)
        return
    console = Console()
    for name in ("affinity", "kill", "scale"):
        rows = report[name] if isinstance(report[name], list) else [report[name]]
        table = Table(*rows[0], title=name)
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        console.print(table)
    console.print({key: report[key] for key in ("machine", "settings", "kept")})
