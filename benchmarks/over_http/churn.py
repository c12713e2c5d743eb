"""Thousands of requests, many of them given up by their clients, and what is left of them in the server: nothing.

Requests of all strategies come from several clients. For a part of them the client closes the connection before the
answer. Before and after, the same prompts are decoded greedily; their drafts must be the same to the last token.
"""

import asyncio
import random
import time
from collections import Counter
from typing import Annotated, Any

import httpx
import typer
from prometheus_client.parser import text_string_to_metric_families

from superdraft.benchmarks.answers import different_prompts
from superdraft.benchmarks.options import AsJson, ServerDtype, ServerModel
from superdraft.benchmarks.over_http.local_server import NEVER_REFUSE, http_client, local_server, serve_options
from superdraft.benchmarks.summary import count_text, make_report, plain_table, print_promises
from superdraft.benchmarks.typing_texts import TEXTS

STRATEGIES = ("superposed", "sample", "greedy", "sample+superposed")
MAX_PATIENCE_S = 0.2
SETTLE_S = 30.0
LOAD_METRICS = {
    f"superdraft_{name}" for name in ("used_slots", "running_sequences", "waiting_sequences", "waiting_requests")
}


def main(
    requests: Annotated[int, typer.Option(min=1, help="Requests to send.")] = 10_000,
    clients: Annotated[int, typer.Option(min=1, help="Clients that send them.")] = 32,
    cancelled: Annotated[float, typer.Option(min=0, max=1, help="Share that the client may give up.")] = 0.5,
    model: ServerModel = None,
    dtype: ServerDtype = None,
    as_json: AsJson = False,
) -> None:
    """Send and cancel requests. Exit code 1 if a slot or a request stays, or if greedy drafts have changed."""
    options = serve_options(model=model, dtype=dtype)
    with local_server([*options, *NEVER_REFUSE]) as url:
        before, outcomes, left, after = asyncio.run(_churn(url, requests, clients, cancelled))
    kept = {
        "every request had one outcome": outcomes.total() == requests,
        "no error": set(outcomes) <= {"200", "given up"},
        "no slot and no request left": not any(left.values()),
        "greedy drafts as before": before == after,
    }
    row: dict[str, Any] = {"requests": requests, "outcomes": dict(sorted(outcomes.items())), **left}
    settings = {"clients": clients, "cancelled": cancelled, "serve_options": options}
    report = make_report(__doc__, settings, rows=[row], kept=kept)
    print_promises(report, [plain_table([{**row, "outcomes": count_text(row["outcomes"])}])], as_json)


async def _churn(
    url: str, num_requests: int, num_clients: int, cancelled: float
) -> tuple[list[Any], Counter[str], dict[str, int], list[Any]]:
    chance, prompts = random.Random(0), different_prompts()  # noqa: S311 (the same requests in every run)
    outcomes: Counter[str] = Counter()
    numbers = iter(range(num_requests))
    async with http_client(url) as http:
        before = await _greedy(http)

        async def send_in_turn() -> None:
            for number in numbers:
                patience_s = chance.uniform(0, MAX_PATIENCE_S) if chance.random() < cancelled else None
                body = {"prompt": next(prompts), "max_tokens": 8, "strategy": STRATEGIES[number % len(STRATEGIES)]}
                outcomes[await _outcome(http, body, patience_s)] += 1

        await asyncio.gather(*(send_in_turn() for _ in range(num_clients)))
        left = await _left(http)
        return before, outcomes, left, await _greedy(http)


async def _outcome(http: httpx.AsyncClient, body: dict[str, Any], patience_s: float | None) -> str:
    try:
        async with asyncio.timeout(patience_s):
            return str((await http.post("/v1/drafts", json=body)).status_code)
    except TimeoutError:
        return "given up"
    except httpx.HTTPError as error:
        return type(error).__name__


async def _greedy(http: httpx.AsyncClient) -> list[Any]:
    """Token ids of greedy drafts."""
    bodies = [{"prompt": text[:80], "strategy": "greedy", "max_tokens": 16} for text in TEXTS]
    answers = [(await http.post("/v1/drafts", json=body)).json() for body in bodies]
    return [[draft["token_ids"] for draft in answer["drafts"]] for answer in answers]


async def _left(http: httpx.AsyncClient) -> dict[str, int]:
    """Slots and requests in the server, once what was given up has ended."""
    deadline_s = time.perf_counter() + SETTLE_S
    while True:
        families = text_string_to_metric_families((await http.get("/metrics")).text)
        left = {family.name: int(family.samples[0].value) for family in families if family.name in LOAD_METRICS}
        if not any(left.values()) or time.perf_counter() >= deadline_s:
            return left
        await asyncio.sleep(0.1)
