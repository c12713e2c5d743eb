"""Requests during a restart: a server under load is stopped (SIGTERM) or killed (SIGKILL) and started on the same port.

Clients send the next request as soon as they are answered. After a refusal or a broken connection they wait a moment
and continue, as an editor does with the next key press. Every request has one outcome: the answer's status, or the
client's error, which is `ConnectError` while there is no server.
"""

import asyncio
import itertools
import signal
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from superdraft.benchmarks.options import AsJson, MaxTokens, ServerDtype, ServerModel
from superdraft.benchmarks.over_http.clients import Answers, load
from superdraft.benchmarks.over_http.local_server import (
    ANSWER_TIMEOUT_S,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    LocalServer,
    serve_options,
)
from superdraft.benchmarks.summary import report
from superdraft.benchmarks.typing_texts import TEXTS

PAUSE_S = 0.05
NO_SERVER = "ConnectError"
NOT_BROKEN_OFF = {"200", "503", NO_SERVER}


class Clients:
    """Clients in one event loop.

    Args:
        http: of the server, before and after the restart.
        max_tokens: new tokens per draft.

    Attributes:
        answers: since `start_counting`.
        answered_s: times of the answers, by `time.perf_counter`.
    """

    def __init__(self, http: httpx.AsyncClient, max_tokens: int) -> None:
        self._http, self._max_tokens = http, max_tokens
        self._waiting: set[int] = set()
        self.answers = Answers()
        self.answered_s: list[float] = []

    async def send(self, number: int) -> None:
        """Send a request of the client with this number."""
        prompt = f"{number} {TEXTS[number % len(TEXTS)][:60]}"
        answer = await self.answers.ask(self._http, prompt, max_tokens=self._max_tokens)
        if answer is not None and answer.is_success:
            self.answered_s.append(time.perf_counter())
            self._waiting.discard(number)
        else:
            await asyncio.sleep(PAUSE_S)

    def start_counting(self) -> None:
        """Count anew; requests that are on their way stay in the counts."""
        self.answers.num_sent -= self.answers.outcomes.total()
        self.answers.outcomes.clear()
        self.answered_s = [time.perf_counter()]

    async def all_answered(self, count: int, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until each of the clients has received one more answer.

        Raises:
            TimeoutError: a client received none in time.
        """
        self._waiting = set(range(count))
        async with asyncio.timeout(timeout_s):
            while self._waiting:
                await asyncio.sleep(PAUSE_S)


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
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            asyncio.run(_restart(number, seconds, clients, max_tokens, options, Path(folder) / f"{number.name}.log"))
            for number in (signal.SIGTERM, signal.SIGKILL)
        ]
    kept = {
        "every request had one outcome": all(row["sent"] == sum(row["answers"].values()) for row in rows),
        "SIGTERM broke off no draft": set(rows[0]["answers"]) <= NOT_BROKEN_OFF,
    }
    settings = {"seconds": seconds, "clients": clients, "max_tokens": max_tokens, "serve_options": options}
    report(__doc__, settings, as_json, kept=kept, signals=rows)


async def _restart(
    number: signal.Signals, seconds: float, num_clients: int, max_tokens: int, options: list[str], log: Path
) -> dict[str, Any]:
    server = await asyncio.to_thread(LocalServer.ready, options, log)
    try:
        # Not `http_client`, to which a server that is not there and a broken connection are the same.
        async with httpx.AsyncClient(base_url=server.url, timeout=ANSWER_TIMEOUT_S) as http:
            clients = Clients(http, max_tokens)
            async with load(num_clients, clients.send):
                await clients.all_answered(num_clients)
                await asyncio.sleep(seconds)
                clients.start_counting()
                begun_s = time.perf_counter()
                server.process.send_signal(number)
                await asyncio.to_thread(server.process.wait, STOP_TIMEOUT_S)
                stopped_s = time.perf_counter() - begun_s
                port = server.url.rpartition(":")[2]
                server = await asyncio.to_thread(LocalServer.ready, [*options, "--port", port], log)
                await clients.all_answered(num_clients)
    finally:
        await asyncio.to_thread(server.stop)
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(clients.answered_s)]
    return {
        "signal": number.name,
        "sent": clients.answers.num_sent,
        "answers": dict(sorted(clients.answers.outcomes.items())),
        "stopped_s": round(stopped_s, 2),
        "longest_gap_s": round(max(gaps_s), 2),
    }
