"""Clients that behave badly, and whether the server keeps its promises to everybody else.

- *hammering*: clients send their next request as soon as they are answered or refused, first a few, then many. What a
  refusal costs is time that accepted requests lack.
- *large-prompts*: clients send prompts as long as a body may be, of digits, prose and blanks in turn. Their tokens are
  hard to count without encoding them. They do not fit into the context and are refused.
- *large-requests*: clients ask for as many tokens as one request may decode.
- *churn*: clients send requests of all strategies, and close the connection before half of the answers.

Beside the last three, a small client sends a request after every pause, first alone. Afterwards, nothing may be left in
the server, and greedy drafts must be the same to the last token.
"""

import asyncio
import itertools
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import httpx
import typer

from superdraft.benchmarks.options import AsJson, ServerDtype, ServerModel
from superdraft.benchmarks.over_http.clients import GIVEN_UP, Answers, different_prompts, in_turn
from superdraft.benchmarks.over_http.local_server import http_client, local_server, serve_options
from superdraft.benchmarks.summary import report
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.server.cli.settings_options import setting
from superdraft.server.errors import CommandError
from superdraft.server.settings import Settings

FEW_CLIENTS = 4
WARM_UP_S = 3.0
PAUSE_S = 0.1  # of the small client
RETRY_S = 1.0
SETTLE_S = 30.0
MAX_REFUSAL_MS = 100.0
MAX_SLOWDOWN = 1.5  # over the target
MAX_SMALL_SLOWDOWN = 1.1  # beside prompts that are refused
MIN_ANSWERED = 0.9
LARGE_CHARS = 512 * 1024 - 1024  # the rest of the largest body is JSON
LARGE_TEXTS = [(text * (LARGE_CHARS // len(text) + 1))[:LARGE_CHARS] for text in ("7", " ".join(TEXTS) + " ", " ")]
NUM_PROMPTS, LARGE_TOKENS = 32, 256
STRATEGIES = ("superposed", "sample", "greedy", "sample+superposed")
MAX_PATIENCE_S = 0.2
_GAUGES = re.compile(r"^superdraft_(used_slots|(?:running|waiting)_sequences|waiting_requests) (\S+)$", re.MULTILINE)

Rows = Sequence[Mapping[str, Any]]
Attacker = Callable[[httpx.AsyncClient, Answers, int], Awaitable[object]]
"""Sends the request with this number and waits for its answer."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One kind of attack.

    Attributes:
        send: sends an attacker's request.
        clients: number of attackers.
        is_beside_small: whether a small client is measured, too; otherwise a few attackers are, and then all.
        promises: of the server, from the rows of the phases and the target latency in ms, and whether it kept them.
    """

    send: Attacker
    clients: int
    is_beside_small: bool
    promises: Callable[[Rows, float], dict[str, bool]]


async def _hammer(http: httpx.AsyncClient, answers: Answers, number: int) -> None:
    text = TEXTS[number % len(TEXTS)]
    await answers.ask(http, f"{number}: {text[: 60 + number % 60]}")


async def _send_large_prompt(http: httpx.AsyncClient, answers: Answers, number: int) -> None:
    await answers.ask(http, LARGE_TEXTS[number % len(LARGE_TEXTS)])
    await asyncio.sleep(RETRY_S / 4)


async def _send_large_request(http: httpx.AsyncClient, answers: Answers, number: int) -> None:
    prompts = [f"{number} {index}: {TEXTS[index % len(TEXTS)][:80]}" for index in range(NUM_PROMPTS)]
    answer = await answers.ask(http, prompts, path="/v1/completions", n=1, strategy="sample", max_tokens=LARGE_TOKENS)
    if answer is None or not answer.is_success:
        await asyncio.sleep(RETRY_S)


async def _give_up(http: httpx.AsyncClient, answers: Answers, number: int) -> None:
    chance = random.Random(number)  # noqa: S311 (the same requests in every run)
    patience_s = chance.uniform(0, MAX_PATIENCE_S) if chance.random() < 1 / 2 else None
    strategy = STRATEGIES[number % len(STRATEGIES)]
    text = TEXTS[number % len(TEXTS)]
    await answers.ask(http, f"{number}: {text[:60]}", patience_s=patience_s, max_tokens=8, strategy=strategy)


def _hammering_promises(rows: Rows, target_ms: float) -> dict[str, bool]:
    return {
        f"refusals within {MAX_REFUSAL_MS:g} ms (p95)": (rows[1]["refused_p95_ms"] or 0) <= MAX_REFUSAL_MS,
        f"accepted p95 within {MAX_SLOWDOWN} times the target": (rows[1]["p95_ms"] or 0) <= MAX_SLOWDOWN * target_ms,
    }


def _unnoticed(rows: Rows, _target_ms: float) -> dict[str, bool]:
    alone_ms, beside_ms = (row["p95_ms"] for row in rows[:2])
    is_kept = bool(alone_ms and beside_ms) and beside_ms <= MAX_SMALL_SLOWDOWN * alone_ms
    return {f"small client's p95 within {MAX_SMALL_SLOWDOWN} times that alone": is_kept}


def _in_time(rows: Rows, target_ms: float) -> dict[str, bool]:
    beside = rows[1]
    num_answered = beside["answers"].get("200", 0)
    return {
        f"{MIN_ANSWERED:.0%} of the small client's requests answered": num_answered >= MIN_ANSWERED * beside["sent"],
        f"their p95 within {MAX_SLOWDOWN} times the target": (beside["p95_ms"] or 0) <= MAX_SLOWDOWN * target_ms,
    }


ATTACKS = {
    "hammering": Attack(_hammer, 64, False, _hammering_promises),
    "large-prompts": Attack(_send_large_prompt, 1, True, _unnoticed),
    "large-requests": Attack(_send_large_request, 2, True, _in_time),
    "churn": Attack(_give_up, 8, True, _in_time),
}


def main(
    kind: Annotated[str, typer.Argument(help=f"{', '.join(ATTACKS)}.")],
    clients: Annotated[int | None, typer.Option(min=1, help="Clients that attack. If not set, as usual.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of attack.")] = 60.0,
    baseline: Annotated[float, typer.Option(min=1, help="Seconds before it.")] = 10.0,
    model: ServerModel = None,
    dtype: ServerDtype = None,
    target_latency_ms: Annotated[int | None, setting("target_latency_ms")] = None,
    as_json: AsJson = False,
) -> None:
    """Attack a server. Exit code 1 if it does not keep its promises."""
    if kind not in ATTACKS:
        raise CommandError(f"The kind of attack must be one of {', '.join(ATTACKS)}, got {kind!r}.")
    attack = ATTACKS[kind]
    clients = clients or attack.clients
    options = serve_options(model=model, dtype=dtype, target_latency_ms=target_latency_ms)
    target_ms = target_latency_ms or Settings.model_fields["target_latency_ms"].default
    with local_server(options) as url:
        rows, left, is_same = asyncio.run(_run(url, attack, clients, baseline, seconds))
    kept = {
        "every request answered": all(row["sent"] - row["answers"].get(GIVEN_UP, 0) == row["answered"] for row in rows),
        "no internal error": not any("500" in row["answers"] for row in rows),
        "no slot and no request left": bool(left) and not any(left.values()),
        "greedy drafts as before": is_same,
        **attack.promises(rows, target_ms),
    }
    settings = {"kind": kind, "clients": clients, "serve_options": options}
    report(__doc__, settings, as_json, kept=kept, phases=rows, left=left)


async def _run(
    url: str, attack: Attack, num_clients: int, baseline_s: float, seconds: float
) -> tuple[Rows, dict[str, int], bool]:
    """The rows of the phases, what is left in the server, and whether greedy drafts are the same as before."""
    async with http_client(url) as http:
        before = await _greedy(http)
        run = _beside if attack.is_beside_small else _few_and_all
        rows = await run(http, attack.send, num_clients, baseline_s, seconds)
        left = await _left(http)
        return rows, left, await _greedy(http) == before


async def _few_and_all(
    http: httpx.AsyncClient, attack: Attacker, num_clients: int, baseline_s: float, seconds: float
) -> Rows:
    rows, numbers = [], itertools.count()
    for count, limit_s in ((FEW_CLIENTS, baseline_s), (num_clients, seconds)):
        answers = Answers()

        async def send(_: int, own: Answers = answers) -> None:
            await attack(http, own, next(numbers))

        await in_turn(count, send, limit_s)
        rows.append(answers.row(f"{count} clients", limit_s))
    return rows


async def _beside(
    http: httpx.AsyncClient, attack: Attacker, num_clients: int, baseline_s: float, seconds: float
) -> Rows:
    prompts, numbers, attackers = different_prompts(), itertools.count(), Answers()

    async def small(limit_s: float) -> Answers:
        answers = Answers()

        async def send(_: int) -> None:
            await answers.ask(http, next(prompts))
            await asyncio.sleep(PAUSE_S)

        await in_turn(1, send, limit_s)
        return answers

    await small(WARM_UP_S)
    alone = await small(baseline_s)
    sending = in_turn(num_clients, lambda _: attack(http, attackers, next(numbers)), math.inf)
    attacking = asyncio.create_task(sending)
    beside = await small(seconds)
    attacking.cancel()  # a large request may take a minute
    await asyncio.gather(attacking, return_exceptions=True)
    phases = ((alone, "small client alone", baseline_s), (beside, "beside", seconds), (attackers, "attackers", seconds))
    return [answers.row(name, limit_s) for answers, name, limit_s in phases]


async def _greedy(http: httpx.AsyncClient) -> list[Any]:
    """Token ids of greedy drafts. For a moment after a flood, the server refuses most of what its address sends."""
    drafts = []
    for text in TEXTS:
        body = {"prompt": text[:80], "strategy": "greedy", "max_tokens": 16}
        deadline_s = time.perf_counter() + SETTLE_S
        while (answer := await http.post("/v1/drafts", json=body)).status_code == HTTPStatus.TOO_MANY_REQUESTS:
            if time.perf_counter() >= deadline_s:
                break
            await asyncio.sleep(RETRY_S)
        drafts.append([draft["token_ids"] for draft in answer.raise_for_status().json()["drafts"]])
    return drafts


async def _left(http: httpx.AsyncClient) -> dict[str, int]:
    """Slots and requests in the server, once what was given up has ended."""
    deadline_s = time.perf_counter() + SETTLE_S
    while True:
        metrics = (await http.get("/metrics")).text
        left = {name: int(float(value)) for name, value in _GAUGES.findall(metrics)}
        if not any(left.values()) or time.perf_counter() >= deadline_s:
            return left
        await asyncio.sleep(0.1)
