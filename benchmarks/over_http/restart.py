"""Requests during a restart: a server under load is stopped (SIGTERM) or killed (SIGKILL) and started on the same port.

Clients send the next request as soon as they are answered. After a refusal or a broken connection they wait a moment
and continue, as an editor does with the next key press. Every request has one outcome, and all outcomes are counted.
"""

import asyncio
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from superdraft.benchmarks.options import AsJson, MaxTokens, ServerDtype, ServerModel
from superdraft.benchmarks.over_http.local_server import (
    ANSWER_TIMEOUT_S,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    LocalServer,
    serve_options,
)
from superdraft.benchmarks.summary import make_report, plain_table, print_promises
from superdraft.benchmarks.typing_texts import TEXTS

PAUSE_S = 0.05
ANSWERED, SHUTTING_DOWN, BROKEN_OFF, NO_SERVER = "answered", "shutting down (503)", "broken off", "no server"
OUTCOMES = (ANSWERED, SHUTTING_DOWN, BROKEN_OFF, NO_SERVER, "other")


@dataclass(slots=True)
class Seen:
    """What clients saw from the signal until the restarted server had answered each of them.

    Attributes:
        num_sent: requests, including those in flight at the signal.
        outcomes: requests by outcome.
        answered_s: time of the last answer.
        longest_gap_s: longest time without an answer to any client.
        stopped_s: seconds from the signal to the end of the process.
    """

    num_sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    answered_s: float = field(default_factory=time.perf_counter)
    longest_gap_s: float = 0.0
    stopped_s: float = 0.0


class Clients:
    """Clients in one event loop.

    Args:
        url: of the server, before and after the restart.
        count: number of clients.
        max_tokens: new tokens per draft.
    """

    def __init__(self, url: str, count: int, max_tokens: int) -> None:
        self._url = url
        self._count = count
        self._max_tokens = max_tokens
        self._is_over = False
        self.seen = Seen()
        self.waiting = set(range(count))

    async def run(self, number: int) -> None:
        """Send requests until `stop`."""
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
        """Reset the counts; requests in flight count."""
        self.seen = Seen(num_sent=self.seen.num_sent - self.seen.outcomes.total())

    async def all_answered(self, timeout_s: float) -> None:
        """Wait until each client has received one more answer.

        Raises:
            TimeoutError: a client received none in time.
        """
        self.waiting = set(range(self._count))
        async with asyncio.timeout(timeout_s):
            while self.waiting:
                await asyncio.sleep(PAUSE_S)

    def stop(self) -> None:
        """Send no more requests."""
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
        return NO_SERVER
    except httpx.HTTPError:
        return BROKEN_OFF
    if response.is_success:
        return ANSWERED if response.json()["drafts"] else "other"
    return SHUTTING_DOWN if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else "other"


def main(
    seconds: Annotated[float, typer.Option(min=0, help="Seconds of load before each signal.")] = 10.0,
    clients: Annotated[int, typer.Option(min=1, help="Number of clients.")] = 8,
    max_tokens: MaxTokens = 10,
    model: ServerModel = None,
    dtype: ServerDtype = None,
    as_json: AsJson = False,
) -> None:
    """Stop and kill a server under load, and restart it. Exit code 1 if the stop interrupted a draft."""
    options = serve_options(model=model, dtype=dtype)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in (signal.SIGTERM, signal.SIGKILL):
            log = Path(folder) / f"{number.name}.log"
            seen = asyncio.run(_restart(number, seconds, clients, max_tokens, options, log))
            outcomes = {outcome: seen.outcomes[outcome] for outcome in OUTCOMES}
            times = {"stopped_s": round(seen.stopped_s, 2), "longest_gap_s": round(seen.longest_gap_s, 2)}
            rows.append({"signal": number.name, "sent": seen.num_sent, **outcomes, **times})
    kept = {
        "every request had one outcome": all(row["sent"] == sum(row[name] for name in OUTCOMES) for row in rows),
        "SIGTERM broke off no draft": rows[0][BROKEN_OFF] == 0,
    }
    settings = {"seconds": seconds, "clients": clients, "max_tokens": max_tokens, "serve_options": options}
    report = make_report(__doc__, settings, signals=rows, kept=kept)
    print_promises(report, [plain_table(rows)], as_json)


async def _restart(
    number: signal.Signals, seconds: float, num_clients: int, max_tokens: int, options: list[str], log: Path
) -> Seen:
    server = await asyncio.to_thread(LocalServer.ready, options, log)
    try:
        clients = Clients(server.url, num_clients, max_tokens)
        running = [asyncio.create_task(clients.run(i)) for i in range(num_clients)]
        await clients.all_answered(START_TIMEOUT_S)
        await asyncio.sleep(seconds)
        clients.start_counting()
        begun_s = time.perf_counter()
        server.process.send_signal(number)
        await asyncio.to_thread(server.process.wait, STOP_TIMEOUT_S)
        clients.seen.stopped_s = time.perf_counter() - begun_s
        port = server.url.rpartition(":")[2]
        server = await asyncio.to_thread(LocalServer.ready, [*options, "--port", port], log)
        await clients.all_answered(START_TIMEOUT_S)
        clients.stop()
        await asyncio.gather(*running)
        return clients.seen
    finally:
        await asyncio.to_thread(server.stop)
