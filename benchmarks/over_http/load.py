"""How many people who type one server can follow: answers, latency and model rows under load.

Open loop: each client types a text key by key, with a person's pauses, and asks for drafts after every key, as an
editor does. It does not wait: the next key's request ends the last one if that is still unanswered (status 499). Now
and then it stops to think, which is when most drafts are read.
Closed loop: each client asks again as soon as it is answered; this measures throughput, to compare strategies.
"""

import asyncio
import contextlib
import json
import random
import ssl
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from superdraft.benchmarks.machine import describe_machine
from superdraft.benchmarks.over_http.local_server import local_server
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.params import SELECTIONS

KEY_PAUSE_S = 0.15  # median of a log-normal; one pause in ten is longer than 0.34 s or shorter than 0.07 s
THINKING_PAUSE_S = 1.5  # median; after one word in five
THINKING_CHANCE = 0.2
PAUSE_SIGMA = 0.5
FIRST_CHARS = 12  # what is there already when a client begins
MAX_WARM_UP_S = 3.0
ANSWER_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """One run of the load test.

    Attributes:
        num_clients: people typing at the same time.
        seconds: how long they type.
        strategy: as in the request, or a selection of the superposed one.
        num_drafts: as in the request.
        max_tokens: as in the request.
        is_closed: the closed loop.
    """

    num_clients: int
    seconds: float
    strategy: str
    num_drafts: int
    max_tokens: int
    is_closed: bool


@dataclass(slots=True)
class Tally:
    """What came back.

    Attributes:
        deadline_s: when the clients stop; the last requests are answered later.
        num_sent: requests.
        num_in_time: of those, answered before the deadline.
        num_drafted_in_time: of those, with drafts (status 200).
        statuses: answers; for a request without one why not: the client's error, "ReadTimeout" or "ReadError" for two.
        latencies_ms: of the answers with drafts.
        usages: likewise.
    """

    deadline_s: float
    num_sent: int = 0
    num_in_time: int = 0
    num_drafted_in_time: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    usages: list[dict[str, int]] = field(default_factory=list)


def main(
    *,
    num_clients: list[int],
    seconds: float,
    strategies: list[str],
    num_drafts: list[int],
    max_tokens: int,
    is_closed: bool,
    url: str | None,
    serve_options: list[str],
    as_json: bool,
) -> bool:
    """Run every combination of clients, strategies and drafts against one server, and print.

    Args:
        num_clients: see Load.
        seconds: see Load.
        strategies: see Load.
        num_drafts: see Load.
        max_tokens: see Load.
        is_closed: see Load.
        url: a running server; None: start one here.
        serve_options: for the server that is started.
        as_json: print JSON instead of a table.

    Returns:
        Whether every request had exactly one answer, and none was an error.
    """
    loads = [
        Load(clients, seconds, strategy, drafts, max_tokens, is_closed)
        for clients in num_clients
        for drafts in num_drafts
        for strategy in strategies
    ]
    with local_server(serve_options) if url is None else contextlib.nullcontext(url) as base_url:
        rows = [_row(load, asyncio.run(run_load(base_url, load))) for load in loads]
    settings = {
        "server": url or "started here, on the same processors as the clients",
        "serve_options": serve_options,
        "loop": "closed" if is_closed else "open",
        "seconds": seconds,
        "max_tokens": max_tokens,
        "key_pause_median_s": KEY_PAUSE_S,
        "thinking_pause_median_s": THINKING_PAUSE_S,
    }
    report = {"question": __doc__.splitlines()[0], "machine": describe_machine(), "settings": settings, "rows": rows}
    _print(report, as_json)
    return all(set(row["answers"]) <= {"200", "499"} and row["sent"] == row["answered"] for row in rows)


async def run_load(base_url: str, load: Load) -> Tally:
    """Let the clients type, and wait until every request is answered."""
    run = _ask_on if load.is_closed else _type
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(http) for http in _http_clients(base_url, load.num_clients)]
        tally = Tally(time.perf_counter() + load.seconds)
        await asyncio.gather(*(run(http, load, i, tally) for i, http in enumerate(clients)))
    return tally


def _http_clients(base_url: str, count: int) -> list[httpx.AsyncClient]:
    """A client for each person: one pool for all would take longer over its many connections than the server does."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    context = ssl.create_default_context()  # made once: it takes as long as hundreds of requests
    return [
        httpx.AsyncClient(base_url=base_url, limits=limits, timeout=ANSWER_TIMEOUT_S, verify=context)
        for _ in range(count)
    ]


def prompts(client: int) -> Iterator[str]:
    """What stands before the cursor after each key, text after text, without end."""
    while True:
        for i in range(len(TEXTS)):
            text = TEXTS[(client + i) % len(TEXTS)]
            yield from (text[:end] for end in range(FIRST_CHARS, len(text) + 1))


async def _type(http: httpx.AsyncClient, load: Load, client: int, tally: Tally) -> None:
    chance = random.Random(client)  # noqa: S311 (the same keys at the same times in every run)
    await asyncio.sleep(chance.random() * min(MAX_WARM_UP_S, load.seconds / 4))  # people don't begin in step
    asked = []
    for prompt in prompts(client):
        if time.perf_counter() >= tally.deadline_s:
            break
        asked.append(asyncio.create_task(_ask(http, load, client, prompt, tally)))
        thinks = prompt.endswith(" ") and chance.random() < THINKING_CHANCE
        median_s = THINKING_PAUSE_S if thinks else KEY_PAUSE_S
        await asyncio.sleep(chance.lognormvariate(0, PAUSE_SIGMA) * median_s)
    await asyncio.gather(*asked)


async def _ask_on(http: httpx.AsyncClient, load: Load, client: int, tally: Tally) -> None:
    for prompt in prompts(client):
        if time.perf_counter() >= tally.deadline_s:
            break
        await _ask(http, load, client, prompt, tally)


async def _ask(http: httpx.AsyncClient, load: Load, client: int, prompt: str, tally: Tally) -> None:
    body = {
        "prompt": prompt,
        "session_id": f"load-{client}",
        "num_drafts": load.num_drafts,
        "max_tokens": load.max_tokens,
    }
    body["selection" if load.strategy in SELECTIONS else "strategy"] = load.strategy
    tally.num_sent += 1
    started_s = time.perf_counter()
    try:
        response = await http.post("/v1/drafts", json=body)
    except httpx.HTTPError as error:
        tally.statuses[type(error).__name__] += 1
        return
    ended_s = time.perf_counter()
    in_time, drafted = ended_s <= tally.deadline_s, response.status_code == httpx.codes.OK
    tally.statuses[str(response.status_code)] += 1
    tally.num_in_time += in_time
    tally.num_drafted_in_time += in_time and drafted
    if drafted:
        tally.latencies_ms.append((ended_s - started_s) * 1000)
        tally.usages.append(response.json()["usage"])


def _row(load: Load, tally: Tally) -> dict[str, Any]:
    answered = sum(count for status, count in tally.statuses.items() if status.isdigit())
    prefilled = [usage["prompt_tokens"] - usage["cached_tokens"] for usage in tally.usages]
    return {
        "clients": load.num_clients,
        "strategy": load.strategy,
        "num_drafts": load.num_drafts,
        "sent": tally.num_sent,
        "answered": answered,
        "answers": dict(sorted(tally.statuses.items())),
        "p50_ms": _percentile(tally.latencies_ms, 50),
        "p95_ms": _percentile(tally.latencies_ms, 95),
        "requests_per_s": round(tally.num_in_time / load.seconds, 2),
        "drafted_per_s": round(tally.num_drafted_in_time / load.seconds, 2),
        "rows_per_request": _mean([usage["forward_rows"] for usage in tally.usages]),
        "prefilled_per_request": _mean(prefilled),
    }


def _percentile(values: list[float], percent: int) -> float | None:
    if len(values) < 2:
        return None
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 1)


def _mean(values: list[int]) -> float | None:
    return round(statistics.fmean(values), 2) if values else None


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 (standard output is the product here)
        return
    table = Table(
        "clients", "strategy", "k", "sent", "answers", "p50 ms", "p95 ms", "requests/s", "200/s", "rows", "prefilled"
    )
    for row in report["rows"]:
        answers = ", ".join(f"{status}: {count}" for status, count in row["answers"].items())
        columns = ("p50_ms", "p95_ms", "requests_per_s", "drafted_per_s", "rows_per_request", "prefilled_per_request")
        table.add_row(
            str(row["clients"]),
            row["strategy"],
            str(row["num_drafts"]),
            str(row["sent"]),
            answers,
            *(str(row[name]) for name in columns),
        )
    console = Console()
    if not console.is_terminal:
        console.width = 130
    console.print(table)
    console.print("requests/s, 200/s: answered while the clients type; the last requests are answered after that")
    console.print("rows, prefilled: model rows of decode steps and prompt tokens run, for each request answered 200")
    console.print({"machine": report["machine"], "settings": report["settings"]})
