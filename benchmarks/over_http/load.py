"""Load test with simulated users: answers, latency and model rows.

Open loop: each client types a text key by key, with human pauses, and requests drafts after every key, as an editor
does. It does not wait: the next key's request ends the previous one if that is still unanswered (status 499).
Sometimes it stops to think, which is when most drafts are read.
Closed loop: each client sends the next request as soon as it is answered. This measures throughput, to compare
strategies.
"""

import asyncio
import contextlib
import random
import ssl
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import typer
from rich.table import Table

from superdraft.benchmarks.options import (
    AsJson,
    MaxTokens,
    NumDraftsEach,
    ServerDtype,
    ServerKvMemory,
    ServerModel,
    ServerUrl,
)
from superdraft.benchmarks.over_http.local_server import NEVER_REFUSE, http_client, serve_options, server_at
from superdraft.benchmarks.summary import count_text, make_report, print_report, rounded_percentile
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.params import SELECTIONS

KEY_PAUSE_S = 0.15  # median of a log-normal; one pause in ten is longer than 0.34 s or shorter than 0.07 s
THINKING_PAUSE_S = 1.5  # median; after one word in five
THINKING_CHANCE = 0.2
PAUSE_SIGMA = 0.5
FIRST_CHARS = 12  # length of the text when a client begins
MAX_WARM_UP_S = 3.0
CLIENTS, STRATEGIES, NUM_DRAFTS = [4], ["superposed"], [3]
NOTES = (
    "requests/s, 200/s: requests answered while the clients type; the last ones are answered after that",
    "rows, prefilled: model rows of decode steps and prompt tokens run, per request answered with 200",
)


@dataclass(frozen=True, slots=True)
class Load:
    """One run of the load test.

    Attributes:
        num_clients: users typing at the same time.
        seconds: how long they type.
        strategy: strategy of the requests, or a selection of the superposed strategy.
        num_drafts: k.
        max_tokens: new tokens per draft.
        is_closed: run the closed loop.
    """

    num_clients: int
    seconds: float
    strategy: str
    num_drafts: int
    max_tokens: int
    is_closed: bool


@dataclass(slots=True)
class Tally:
    """The results of one run.

    Attributes:
        deadline_s: when the clients stop; the last requests are answered later.
        num_sent: requests sent.
        num_in_time: requests answered before the deadline.
        num_drafted_in_time: requests answered with drafts (status 200) before the deadline.
        statuses: answers by status; a request without an answer counts under the client's error, such as ReadTimeout.
        latencies_ms: latencies of the answers with drafts.
        usages: `usage` of the answers with drafts.
    """

    deadline_s: float
    num_sent: int = 0
    num_in_time: int = 0
    num_drafted_in_time: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    usages: list[dict[str, int]] = field(default_factory=list)


def main(
    clients: Annotated[list[int], typer.Option(min=1, help="Number of users typing. Repeatable.")] = CLIENTS,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of typing, per combination.")] = 60.0,
    strategy: Annotated[
        list[str], typer.Option(help="Strategy or selection of the requests. Repeatable.")
    ] = STRATEGIES,
    num_drafts: NumDraftsEach = NUM_DRAFTS,
    max_tokens: MaxTokens = 10,
    closed: Annotated[
        bool, typer.Option("--closed", help="Send the next request when the last one is answered; type no keys.")
    ] = False,
    url: ServerUrl = None,
    model: ServerModel = None,
    dtype: ServerDtype = None,
    kv_memory: ServerKvMemory = None,
    as_json: AsJson = False,
) -> None:
    """Let simulated users type against a server. Exit code 1 if a request has no answer or ends in an error."""
    loads = [
        Load(count, seconds, name, k, max_tokens, closed) for count in clients for k in num_drafts for name in strategy
    ]
    options = serve_options(model=model, dtype=dtype, kv_memory=kv_memory)
    with server_at(url, options, NEVER_REFUSE if closed else ()) as base_url:
        rows = [_row(load, asyncio.run(run_load(base_url, load))) for load in loads]
    settings = {
        "server": url or "started here, on the same processors as the clients",
        "serve_options": options,
        "loop": "closed" if closed else "open",
        "seconds": seconds,
        "max_tokens": max_tokens,
        "key_pause_median_s": KEY_PAUSE_S,
        "thinking_pause_median_s": THINKING_PAUSE_S,
    }
    print_report(make_report(__doc__, settings, rows=rows), [_table(rows)], as_json, NOTES)
    if not all(set(row["answers"]) <= {"200", "499"} and row["sent"] == row["answered"] for row in rows):
        raise typer.Exit(1)


async def run_load(base_url: str, load: Load) -> Tally:
    """Let the clients type, and wait until every request is answered."""
    run = _send_in_turn if load.is_closed else _type
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(http) for http in _http_clients(base_url, load.num_clients)]
        tally = Tally(time.perf_counter() + load.seconds)
        await asyncio.gather(*(run(http, load, i, tally) for i, http in enumerate(clients)))
    return tally


def _http_clients(base_url: str, count: int) -> list[httpx.AsyncClient]:
    """A client per user: a single pool would spend more time on its many connections than the server does."""
    context = ssl.create_default_context()  # shared: making one takes as long as hundreds of requests
    return [http_client(base_url, verify=context) for _ in range(count)]


def prompts(client: int) -> Iterator[str]:
    """The text before the cursor after each key, text after text, without end.

    No two are the same: a server answers what it has drafted before without running its model.
    """
    while True:
        for i in range(len(TEXTS)):
            title = f"{uuid.uuid4()}\n\n"
            text = title + TEXTS[(client + i) % len(TEXTS)]
            yield from (text[:end] for end in range(len(title) + FIRST_CHARS, len(text) + 1))


async def _type(http: httpx.AsyncClient, load: Load, client: int, tally: Tally) -> None:
    chance = random.Random(client)  # noqa: S311 (the same keys at the same times in every run)
    await asyncio.sleep(chance.random() * min(MAX_WARM_UP_S, load.seconds / 4))  # users do not begin at the same time
    asked = []
    for prompt in prompts(client):
        if time.perf_counter() >= tally.deadline_s:
            break
        asked.append(asyncio.create_task(_ask(http, load, client, prompt, tally)))
        thinks = prompt.endswith(" ") and chance.random() < THINKING_CHANCE
        median_s = THINKING_PAUSE_S if thinks else KEY_PAUSE_S
        await asyncio.sleep(chance.lognormvariate(0, PAUSE_SIGMA) * median_s)
    await asyncio.gather(*asked)


async def _send_in_turn(http: httpx.AsyncClient, load: Load, client: int, tally: Tally) -> None:
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
        "p50_ms": rounded_percentile(tally.latencies_ms, 50),
        "p95_ms": rounded_percentile(tally.latencies_ms, 95),
        "requests_per_s": round(tally.num_in_time / load.seconds, 2),
        "drafted_per_s": round(tally.num_drafted_in_time / load.seconds, 2),
        "rows_per_request": _mean([usage["forward_rows"] for usage in tally.usages]),
        "prefilled_per_request": _mean(prefilled),
    }


def _mean(values: list[int]) -> float | None:
    return round(statistics.fmean(values), 2) if values else None


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        "clients", "strategy", "k", "sent", "answers", "p50 ms", "p95 ms", "requests/s", "200/s", "rows", "prefilled"
    )
    columns = ("p50_ms", "p95_ms", "requests_per_s", "drafted_per_s", "rows_per_request", "prefilled_per_request")
    for row in rows:
        first = (str(row[name]) for name in ("clients", "strategy", "num_drafts", "sent"))
        table.add_row(*first, count_text(row["answers"]), *(str(row[name]) for name in columns))
    return table
