"""What clients see when a server is stopped (SIGTERM) or killed (SIGKILL) under load, and started again on its port.

Clients ask again as soon as they are answered. After a refusal or a broken connection they wait a moment and go on, as
an editor does with the next key press. Every request has one outcome, and all of them are counted.
"""

import asyncio
import json
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from superdraft.benchmarks.machine import describe_machine
from superdraft.benchmarks.over_http.local_server import START_TIMEOUT_S, STOP_TIMEOUT_S, LocalServer
from superdraft.benchmarks.typing_texts import TEXTS

PAUSE_S = 0.05
ANSWER_TIMEOUT_S = 60.0
ANSWERED, SHUTTING_DOWN, BROKEN_OFF, NOBODY_THERE = "answered", "shutting down (503)", "broken off", "nobody there"
OUTCOMES = (ANSWERED, SHUTTING_DOWN, BROKEN_OFF, NOBODY_THERE, "other")


@dataclass(slots=True)
class Seen:
    """What clients saw from the signal on, until the server that was started again had answered each of them.

    Attributes:
        num_sent: requests, with those that were on their way at the signal.
        outcomes: how they ended.
        answered_s: when the last answer came.
        longest_gap_s: the longest time without an answer to anybody.
        stopped_s: from the signal to the end of the process.
    """

    num_sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    answered_s: float = field(default_factory=time.perf_counter)
    longest_gap_s: float = 0.0
    stopped_s: float = 0.0


class Clients:
    """People who ask, in one event loop.

    Args:
        url: the server's, before and after.
        count: how many.
        max_tokens: of each draft.
    """

    def __init__(self, url: str, count: int, max_tokens: int) -> None:
        self._url = url
        self._count = count
        self._max_tokens = max_tokens
        self._is_over = False
        self.seen = Seen()
        self.waiting = set(range(count))

    async def ask_on(self, number: int) -> None:
        """Ask until `stop`."""
        async with httpx.AsyncClient(base_url=self._url, timeout=ANSWER_TIMEOUT_S) as http:
            while not self._is_over:
                text = TEXTS[number % len(TEXTS)]
                body = {"prompt": f"{number} {text[:60]}", "max_tokens": self._max_tokens}
                self.seen.num_sent += 1
                outcome = await _outcome(http, body)
                self.seen.outcomes[outcome] += 1
                if outcome == ANSWERED:
                    self._on_answer(number)
                else:
                    await asyncio.sleep(PAUSE_S)

    def start_counting(self) -> None:
        """Forget what was seen so far; requests on their way count."""
        self.seen = Seen(num_sent=self.seen.num_sent - self.seen.outcomes.total())

    async def all_answered(self, timeout_s: float) -> None:
        """Wait until each has had one more answer. Raises TimeoutError."""
        self.waiting = set(range(self._count))
        async with asyncio.timeout(timeout_s):
            while self.waiting:
                await asyncio.sleep(PAUSE_S)

    def stop(self) -> None:
        """Send no more."""
        self._is_over = True

    def _on_answer(self, number: int) -> None:
        now_s = time.perf_counter()
        self.seen.longest_gap_s = max(self.seen.longest_gap_s, now_s - self.seen.answered_s)
        self.seen.answered_s = now_s
        self.waiting.discard(number)


async def _outcome(http: httpx.AsyncClient, body: dict[str, Any]) -> str:
    try:
        response = await http.post("/v1/drafts", json=body)
    except httpx.ConnectError:
        return NOBODY_THERE
    except httpx.HTTPError:
        return BROKEN_OFF
    if response.is_success:
        return ANSWERED if response.json()["drafts"] else "other"
    return SHUTTING_DOWN if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else "other"


def main(*, seconds: float, num_clients: int, max_tokens: int, serve_options: list[str], as_json: bool) -> bool:
    """Stop and kill a server that is started here, and print what its clients saw.

    Args:
        seconds: of load before each signal.
        num_clients: who ask.
        max_tokens: of each draft.
        serve_options: for the server.
        as_json: print JSON instead of a table.

    Returns:
        Whether every request had one outcome, and SIGTERM broke off no draft.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in (signal.SIGTERM, signal.SIGKILL):
            log = Path(folder) / f"{number.name}.log"
            seen = asyncio.run(_restart(number, seconds, num_clients, max_tokens, serve_options, log))
            outcomes = {outcome: seen.outcomes[outcome] for outcome in OUTCOMES}
            times = {"stopped_s": round(seen.stopped_s, 2), "longest_gap_s": round(seen.longest_gap_s, 2)}
            rows.append({"signal": number.name, "sent": seen.num_sent, **outcomes, **times})
    kept = {
        "every request had one outcome": all(row["sent"] == sum(row[name] for name in OUTCOMES) for row in rows),
        "SIGTERM broke off no draft": rows[0][BROKEN_OFF] == 0,
    }
    settings = {"seconds": seconds, "clients": num_clients, "max_tokens": max_tokens, "serve_options": serve_options}
    question = (__doc__ or "").splitlines()[0]
    _print(
        {"question": question, "machine": describe_machine(), "settings": settings, "signals": rows, "kept": kept},
        as_json,
    )
    return all(kept.values())


async def _restart(
    number: signal.Signals, seconds: float, num_clients: int, max_tokens: int, serve_options: list[str], log: Path
) -> Seen:
    server = await asyncio.to_thread(LocalServer.ready, serve_options, log)
    try:
        clients = Clients(server.url, num_clients, max_tokens)
        asking = [asyncio.create_task(clients.ask_on(i)) for i in range(num_clients)]
        await clients.all_answered(START_TIMEOUT_S)
        await asyncio.sleep(seconds)
        clients.start_counting()
        begun_s = time.perf_counter()
        server.process.send_signal(number)
        await asyncio.to_thread(server.process.wait, STOP_TIMEOUT_S)
        clients.seen.stopped_s = time.perf_counter() - begun_s
        port = server.url.rpartition(":")[2]
        server = await asyncio.to_thread(LocalServer.ready, [*serve_options, "--port", port], log)
        await clients.all_answered(START_TIMEOUT_S)
        clients.stop()
        await asyncio.gather(*asking)
        return clients.seen
    finally:
        await asyncio.to_thread(server.stop)


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 (standard output is the product here)
        return
    table = Table(*(name.replace("_", " ") for name in report["signals"][0]))
    for row in report["signals"]:
        table.add_row(*map(str, row.values()))
    console = Console()
    if not console.is_terminal:
        console.width = 150
    console.print(table)
    for promise, is_kept in report["kept"].items():
        console.print(f"{'kept ' if is_kept else 'BROKEN'}  {promise}")
    console.print({"machine": report["machine"], "settings": report["settings"]})
