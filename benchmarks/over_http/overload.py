"""Behaviour of a server under overload: quick refusals, accepted requests as fast as before, and full recovery.

Four phases. *Saturation*: as many clients as there are slots send the next request as soon as they are answered; the
rate of answers is what the server can do. *1x*: requests arrive at that rate, at random times, whether or not earlier
ones are answered. *Overload*: they arrive at a multiple of that rate. *Recovery*: the first phase again, immediately.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from typing import Annotated

import httpx
import typer

from superdraft.benchmarks.options import AsJson, ServerDtype, ServerModel
from superdraft.benchmarks.over_http.clients import Answers, different_prompts, in_turn
from superdraft.benchmarks.over_http.local_server import http_client, local_server, serve_options
from superdraft.benchmarks.summary import report
from superdraft.server.cli.settings_options import setting
from superdraft.server.settings import Settings

WARM_UP_S = 3.0
MAX_REFUSAL_MS = 100.0
MAX_SLOWDOWN = 1.5
MIN_RECOVERED = 0.9
MAX_LEFTOVER = 1.2  # latency in recovery, relative to saturation; on a quiet machine phases differ by less


def main(
    factor: Annotated[float, typer.Option(min=1.1, help="Rate of requests, relative to the server's maximum.")] = 4.0,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of overload.")] = 60.0,
    baseline: Annotated[float, typer.Option(min=1, help="Seconds of each other phase.")] = 15.0,
    num_slots: Annotated[int, typer.Option(min=1, help="KV-cache slots, and clients at saturation.")] = 8,
    model: ServerModel = None,
    dtype: ServerDtype = None,
    queue_timeout_ms: Annotated[int | None, setting("queue_timeout_ms")] = None,
    target_latency_ms: Annotated[int | None, setting("target_latency_ms")] = None,
    as_json: AsJson = False,
) -> None:
    """Send a server more requests than it can answer. Exit code 1 if it does not keep its promises."""
    target_ms = target_latency_ms or Settings.model_fields["target_latency_ms"].default
    options = serve_options(
        model=model, dtype=dtype, queue_timeout_ms=queue_timeout_ms, target_latency_ms=target_latency_ms
    )
    # One row per request, so that slots count requests.
    with local_server([*serve_options(num_slots=num_slots, default_max_branches=1), *options]) as url:
        phases = asyncio.run(_phases(url, factor, seconds, baseline, num_slots))
    rows = [answers.row(name, duration_s) for name, answers, duration_s in phases]
    saturation, once, overload, recovery = rows
    kept = {
        "every request answered": all(row["sent"] == row["answered"] for row in rows),
        f"refusals under {MAX_REFUSAL_MS:g} ms (p95)": (overload["refused_p95_ms"] or 0) < MAX_REFUSAL_MS,
        f"accepted p95 within {MAX_SLOWDOWN} times that at 1x": overload["p95_ms"] <= MAX_SLOWDOWN * once["p95_ms"],
        f"accepted p95 within {MAX_SLOWDOWN} times the target": overload["p95_ms"] <= MAX_SLOWDOWN * target_ms,
        "as fast immediately after it (p50)": recovery["p50_ms"] <= MAX_LEFTOVER * saturation["p50_ms"],
        "as many immediately after it": recovery["accepted_per_s"] >= MIN_RECOVERED * saturation["accepted_per_s"],
    }
    settings = {"factor": factor, "num_slots": num_slots, "serve_options": options}
    report(__doc__, settings, as_json, kept=kept, phases=rows)


async def _phases(
    url: str, factor: float, seconds: float, baseline_s: float, num_clients: int
) -> list[tuple[str, Answers, float]]:
    async with http_client(url) as http:
        prompts = different_prompts()
        await _saturate(http, prompts, WARM_UP_S, num_clients)
        saturation = await _saturate(http, prompts, baseline_s, num_clients)
        per_s = len(saturation.accepted_ms) / baseline_s
        once = await _arrivals(http, prompts, baseline_s, per_s)
        overload = await _arrivals(http, prompts, seconds, factor * per_s)
        recovery = await _saturate(http, prompts, baseline_s, num_clients)
    return [
        ("saturation", saturation, baseline_s),
        ("1x", once, baseline_s),
        (f"{factor:g}x", overload, seconds),
        ("recovery", recovery, baseline_s),
    ]


async def _saturate(http: httpx.AsyncClient, prompts: Iterator[str], seconds: float, num_clients: int) -> Answers:
    """Clients that send the next request as soon as the last one is answered."""
    answers = Answers()
    await in_turn(num_clients, lambda _: answers.ask(http, next(prompts)), seconds)
    return answers


async def _arrivals(http: httpx.AsyncClient, prompts: Iterator[str], seconds: float, per_s: float) -> Answers:
    """Requests at random times, `per_s` on average."""
    answers, asked = Answers(), set()
    chance = random.Random(0)  # noqa: S311 (the same times in every run)
    next_s = begun_s = time.perf_counter()
    while next_s < begun_s + seconds:
        await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
        task = asyncio.create_task(answers.ask(http, next(prompts)))
        asked.add(task)
        task.add_done_callback(asked.discard)
        next_s += chance.expovariate(per_s)
    await asyncio.gather(*asked)
    return answers
