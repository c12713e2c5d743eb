"""Clients of a server that may refuse them: what became of their requests, and how fast they were answered."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from superdraft.benchmarks.summary import rounded_percentile
from superdraft.benchmarks.typing_texts import TEXTS

GIVEN_UP = "given up"

Send = Callable[[int], Awaitable[object]]
"""Sends a request of the client with this number, and waits for its answer."""


@dataclass(slots=True)
class Answers:
    """What became of the requests of one phase.

    Attributes:
        num_sent: requests sent.
        outcomes: requests by outcome: the answer's status, `GIVEN_UP`, or the client's error, such as ReadTimeout.
        accepted_ms: latencies of answers with drafts.
        refused_ms: latencies of other answers.
    """

    num_sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    accepted_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)

    async def ask(
        self,
        http: httpx.AsyncClient,
        prompt: str | list[str],
        *,
        path: str = "/v1/drafts",
        patience_s: float | None = None,
        **fields: object,
    ) -> httpx.Response | None:
        """Send a request for ten tokens, and note what became of it.

        Args:
            http: of the server.
            prompt: of the request.
            path: of the route.
            patience_s: seconds after which the client closes the connection.
            fields: further fields of the request.

        Returns:
            The answer; None if there was none.
        """
        self.num_sent += 1
        begun_s = time.perf_counter()
        try:
            async with asyncio.timeout(patience_s):
                response = await http.post(path, json={"prompt": prompt, "max_tokens": 10, **fields})
        except httpx.HTTPError as error:
            self.outcomes[type(error).__name__] += 1
            return None
        except TimeoutError:
            self.outcomes[GIVEN_UP] += 1
            return None
        except asyncio.CancelledError:
            self.outcomes[GIVEN_UP] += 1
            raise
        took_ms = (time.perf_counter() - begun_s) * 1000
        self.outcomes[str(response.status_code)] += 1
        (self.accepted_ms if response.is_success else self.refused_ms).append(took_ms)
        return response

    def row(self, name: str, seconds: float) -> dict[str, Any]:
        """The phase as a row of a report."""
        return {
            "phase": name,
            "sent": self.num_sent,
            "answered": len(self.accepted_ms) + len(self.refused_ms),
            "answers": dict(sorted(self.outcomes.items())),
            "accepted_per_s": round(len(self.accepted_ms) / seconds, 2),
            "p50_ms": rounded_percentile(self.accepted_ms, 50),
            "p95_ms": rounded_percentile(self.accepted_ms, 95),
            "refused_p50_ms": rounded_percentile(self.refused_ms, 50),
            "refused_p95_ms": rounded_percentile(self.refused_ms, 95),
            "refused_p99_ms": rounded_percentile(self.refused_ms, 99),
            "refused_max_ms": round(max(self.refused_ms), 1) if self.refused_ms else None,
        }


def different_prompts() -> Iterator[str]:
    """Prompts that are all different, so that the prefix cache saves at most the beginning of the text."""
    for number in itertools.count():
        text = TEXTS[number % len(TEXTS)]
        yield f"{number}: {text[: 60 + number % 60]}"


async def in_turn(num_clients: int, send: Send, seconds: float) -> None:
    """Let clients send the next request as soon as the last one is answered, for some time."""
    end_s = time.perf_counter() + seconds
    await _repeat(num_clients, send, lambda: time.perf_counter() >= end_s)


@asynccontextmanager
async def load(num_clients: int, send: Send) -> AsyncIterator[None]:
    """The same during the context, whose end waits for the last answers."""
    stopping = asyncio.Event()
    clients = asyncio.create_task(_repeat(num_clients, send, stopping.is_set))
    try:
        yield
    finally:
        stopping.set()
        await clients


async def _repeat(num_clients: int, send: Send, is_over: Callable[[], bool]) -> None:
    async def client(number: int) -> None:
        while not is_over():
            await send(number)

    await asyncio.gather(*map(client, range(num_clients)))
