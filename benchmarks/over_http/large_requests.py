"""A typist beside clients that ask for as much as they may, and whether the typist is still answered in time.

Two phases on one server, with the same typist: one request after every pause, whether or not the last one is answered.
*Alone*: nothing else happens. *Beside*: other clients send the largest requests that the server takes, many prompts at
once, each as soon as the last one is answered. All come from one address and name no session, so the server cannot tell
them apart. A request that is larger than allowed is sent once; it must be refused at once.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
import typer

from superdraft.benchmarks.options import AsJson, ServerDtype, ServerModel
from superdraft.benchmarks.over_http.local_server import http_client, local_server, serve_options
from superdraft.benchmarks.summary import count_text, make_report, plain_table, print_promises, rounded_percentile
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.server.cli.settings_options import setting
from superdraft.server.settings import Settings

WARM_UP_S = 5.0
PAUSE_S = 0.5
NUM_PROMPTS = 32
MAX_TOKENS = 256
MIN_ANSWERED = 0.9
MAX_SLOWDOWN = 1.5  # over the target
RETRY_S = 1.0


@dataclass(slots=True)
class Answers:
    """One client's answers: statuses, and the latencies of those with drafts."""

    statuses: Counter[int] = field(default_factory=Counter)
    accepted_ms: list[float] = field(default_factory=list)


def main(
    clients: Annotated[int, typer.Option(min=1, help="Clients that send large requests.")] = 2,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of each phase.")] = 30.0,
    model: ServerModel = None,
    dtype: ServerDtype = None,
    target_latency_ms: Annotated[int | None, setting("target_latency_ms")] = None,
    as_json: AsJson = False,
) -> None:
    """Type beside clients that send large requests. Exit code 1 if the typist is not answered in time."""
    options = serve_options(model=model, dtype=dtype, target_latency_ms=target_latency_ms)
    target_ms = target_latency_ms or Settings.model_fields["target_latency_ms"].default
    with local_server(options) as url:
        too_large, phases = asyncio.run(_phases(url, clients, seconds))
    rows = [_row(name, answers) for name, answers in phases]
    beside = phases[1][1]
    num_answered, num_asked = beside.statuses[200], beside.statuses.total()
    kept = {
        "a request that is too large is refused (400)": too_large == httpx.codes.BAD_REQUEST,
        f"{MIN_ANSWERED:.0%} of the typist's requests answered": num_answered >= MIN_ANSWERED * num_asked,
        f"their p95 within {MAX_SLOWDOWN} times the target": (rows[1]["p95_ms"] or 0) <= MAX_SLOWDOWN * target_ms,
    }
    report = make_report(__doc__, {"clients": clients, "serve_options": options}, phases=rows, kept=kept)
    print_promises(report, [plain_table([{**row, "answers": count_text(row["answers"])} for row in rows])], as_json)


async def _phases(url: str, num_clients: int, seconds: float) -> tuple[int, list[tuple[str, Answers]]]:
    async with http_client(url) as http:
        too_large = await http.post("/v1/completions", json=_large(0) | {"n": 32, "max_tokens": 512})
        await _type(http, WARM_UP_S)
        alone = await _type(http, seconds)
        large = Answers()
        others = [asyncio.create_task(_send_large(http, large, number)) for number in range(num_clients)]
        await asyncio.sleep(WARM_UP_S)
        beside = await _type(http, seconds)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    return too_large.status_code, [("typist alone", alone), ("typist beside", beside), ("large requests", large)]


async def _type(http: httpx.AsyncClient, seconds: float) -> Answers:
    answers, asked = Answers(), set()
    begun_s, text = time.perf_counter(), " ".join(TEXTS)
    chance = random.Random(0)  # noqa: S311 (the same times in every run)
    for key in range(1, 10_000):
        if time.perf_counter() - begun_s >= seconds:
            break
        body = {"prompt": text[: 20 + key], "max_tokens": 10}
        task = asyncio.create_task(_ask(http, answers, "/v1/drafts", body))
        asked.add(task)
        await asyncio.sleep(PAUSE_S * chance.uniform(0.5, 1.5))
    await asyncio.gather(*asked)
    return answers


async def _send_large(http: httpx.AsyncClient, answers: Answers, number: int) -> None:
    for turn in range(10_000):
        with contextlib.suppress(httpx.TimeoutException):
            if await _ask(http, answers, "/v1/completions", _large(number + turn)) != httpx.codes.OK:
                await asyncio.sleep(RETRY_S)


def _large(number: int) -> dict[str, Any]:
    """As many tokens as one request may decode by default."""
    prompts = [f"{number} {index}: {TEXTS[index % len(TEXTS)][:80]}" for index in range(NUM_PROMPTS)]
    return {"prompt": prompts, "n": 1, "strategy": "sample", "max_tokens": MAX_TOKENS}


async def _ask(http: httpx.AsyncClient, answers: Answers, path: str, body: dict[str, Any]) -> int:
    begun_s = time.perf_counter()
    response = await http.post(path, json=body)
    answers.statuses[response.status_code] += 1
    if response.is_success:
        answers.accepted_ms.append((time.perf_counter() - begun_s) * 1e3)
    return response.status_code


def _row(name: str, answers: Answers) -> dict[str, Any]:
    return {
        "phase": name,
        "answers": {str(status): count for status, count in sorted(answers.statuses.items())},
        "p50_ms": rounded_percentile(answers.accepted_ms, 50),
        "p95_ms": rounded_percentile(answers.accepted_ms, 95),
    }
