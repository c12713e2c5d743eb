"""What four times too much does to a server: refusals at once, the accepted as quick as before, full speed after it.

Four phases. *Saturation*: as many clients as fit in the server's slots ask again as soon as they are answered; how
many answers a second that gives is what the server can do. *1x*: requests come at that rate, at random times, whether
or not others are answered. *Overload*: they come at a multiple of it. *Recovery*: the first phase again, at once.
"""

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from superdraft.benchmarks.machine import describe_machine
from superdraft.benchmarks.over_http.load import _percentile
from superdraft.benchmarks.over_http.local_server import local_server
from superdraft.benchmarks.typing_texts import TEXTS

WARM_UP_S = 3.0
ANSWER_TIMEOUT_S = 60.0
MAX_REFUSAL_MS = 50.0
MAX_SLOWDOWN = 1.5
MIN_RECOVERED = 0.9
MAX_LEFTOVER = 1.2  # in recovery; a quiet machine differs by less from one phase to the next


@dataclass(slots=True)
class Answers:
    """What came back in a phase.

    Attributes:
        num_sent: requests.
        statuses: of answers; for a request without one the client's error.
        accepted_ms: how long answers with drafts took.
        refused_ms: how long refusals (429, 503) took.
    """

    num_sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    accepted_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)


def main(
    *, factor: float, seconds: float, baseline_s: float, num_slots: int, serve_options: list[str], as_json: bool
) -> bool:
    """Run the phases against a server that is started here, and print.

    Args:
        factor: the overload's rate, in terms of the rate at saturation.
        seconds: how long the overload lasts.
        baseline_s: how long each of the other phases lasts.
        num_slots: the server's; also the number of clients at saturation.
        serve_options: for the server.
        as_json: print JSON instead of a table.

    Returns:
        Whether every request was answered, and the answers kept the limits above.
    """
    # One row a request: then slots count requests.
    with local_server(["--num-slots", str(num_slots), "--default-max-branches", "1", *serve_options]) as url:
        phases = asyncio.run(_phases(url, factor, seconds, baseline_s, num_slots))
    rows = [_row(name, answers, duration_s) for name, answers, duration_s in phases]
    saturation, once, overload, recovery = rows
    kept = {
        "every request answered": all(row["sent"] == row["answered"] for row in rows),
        f"refusals under {MAX_REFUSAL_MS:g} ms (p95)": (overload["refused_p95_ms"] or 0) < MAX_REFUSAL_MS,
        f"accepted p95 within {MAX_SLOWDOWN} times that at 1x": overload["p95_ms"] <= MAX_SLOWDOWN * once["p95_ms"],
        "as quick at once after it (p50)": recovery["p50_ms"] <= MAX_LEFTOVER * saturation["p50_ms"],
        "as many at once after it": recovery["accepted_per_s"] >= MIN_RECOVERED * saturation["accepted_per_s"],
    }
    settings = {"factor": factor, "num_slots": num_slots, "serve_options": serve_options}
    report = {"question": __doc__.splitlines()[0], "machine": describe_machine(), "settings": settings}
    _print({**report, "phases": rows, "kept": kept}, as_json)
    return all(kept.values())


async def _phases(
    url: str, factor: float, seconds: float, baseline_s: float, num_clients: int
) -> list[tuple[str, Answers, float]]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=ANSWER_TIMEOUT_S) as http:
        prompts = _prompts()
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


def _prompts() -> Iterator[str]:
    """Other words every time, so that the prefix cache saves no more than the text's beginning."""
    for number in itertools.count():
        text = TEXTS[number % len(TEXTS)]
        yield f"{number}: {text[: 60 + number % 60]}"


async def _saturate(http: httpx.AsyncClient, prompts: Iterator[str], seconds: float, num_clients: int) -> Answers:
    answers, deadline_s = Answers(), time.perf_counter() + seconds

    async def ask_on() -> None:
        while time.perf_counter() < deadline_s:
            await _ask(http, next(prompts), answers)

    await asyncio.gather(*(ask_on() for _ in range(num_clients)))
    return answers


async def _arrivals(http: httpx.AsyncClient, prompts: Iterator[str], seconds: float, per_s: float) -> Answers:
    """Requests at random times, `per_s` on average."""
    answers, asked = Answers(), set()
    chance = random.Random(0)  # noqa: S311 (the same times in every run)
    next_s = begun_s = time.perf_counter()
    while next_s < begun_s + seconds:
        await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
        task = asyncio.create_task(_ask(http, next(prompts), answers))
        asked.add(task)
        task.add_done_callback(asked.discard)
        next_s += chance.expovariate(per_s)
    await asyncio.gather(*asked)
    return answers


async def _ask(http: httpx.AsyncClient, prompt: str, answers: Answers) -> None:
    answers.num_sent += 1
    begun_s = time.perf_counter()
    try:
        response = await http.post("/v1/drafts", json={"prompt": prompt, "max_tokens": 10})
    except httpx.HTTPError as error:
        answers.statuses[type(error).__name__] += 1
        return
    took_ms = (time.perf_counter() - begun_s) * 1000
    answers.statuses[str(response.status_code)] += 1
    (answers.accepted_ms if response.is_success else answers.refused_ms).append(took_ms)


def _row(name: str, answers: Answers, seconds: float) -> dict[str, Any]:
    return {
        "phase": name,
        "sent": answers.num_sent,
        "answered": sum(count for status, count in answers.statuses.items() if status.isdigit()),
        "answers": dict(sorted(answers.statuses.items())),
        "accepted_per_s": round(len(answers.accepted_ms) / seconds, 2),
        "p50_ms": _percentile(answers.accepted_ms, 50),
        "p95_ms": _percentile(answers.accepted_ms, 95),
        "refused_p50_ms": _percentile(answers.refused_ms, 50),
        "refused_p95_ms": _percentile(answers.refused_ms, 95),
        "refused_p99_ms": _percentile(answers.refused_ms, 99),
        "refused_max_ms": round(max(answers.refused_ms), 1) if answers.refused_ms else None,
    }


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 (standard output is the product here)
        return
    accepted = ("phase", "sent", "answers", "accepted_per_s", "p50_ms", "p95_ms")
    columns = (*accepted, "refused_p50_ms", "refused_p95_ms", "refused_p99_ms", "refused_max_ms")
    table = Table(*(name.replace("_", " ") for name in columns))
    for row in report["phases"]:
        shown = {**row, "answers": ", ".join(f"{status}: {count}" for status, count in row["answers"].items())}
        table.add_row(*(str(shown[name]) for name in columns))
    console = Console()
    if not console.is_terminal:
        console.width = 150
    console.print(table)
    for promise, is_kept in report["kept"].items():
        console.print(f"{'kept ' if is_kept else 'BROKEN'}  {promise}")
    console.print({"machine": report["machine"], "settings": report["settings"]})
