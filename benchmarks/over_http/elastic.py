"""The work that requests get under load: rows, tokens and hits, by the number of clients.

Clients in a closed loop send the beginnings of real texts, whose continuations are known, each with its next request as
soon as the last one is answered. A refused client waits for a moment. The last client can ask for a strategy or a
selection of its own, to compare with.
"""

import asyncio
import itertools
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from superdraft.benchmarks.options import AsJson, ServerDtype, ServerModel, ServerNumThreads
from superdraft.benchmarks.over_http.clients import in_turn
from superdraft.benchmarks.over_http.local_server import http_client, local_server, serve_options
from superdraft.benchmarks.summary import report, rounded_percentile, tracked
from superdraft.evaluation.cases.prompts import Prompt, read_prompts
from superdraft.evaluation.measures.metrics import exact_match
from superdraft.evaluation.reports.plots import curves

CLIENTS = [1, 4, 16, 32, 64]
RETRY_S = 0.05
WARM_UP_S = 1.0
PROMPT_WORDS = 40


@dataclass(slots=True)
class Answers:
    """What the clients got: answers with 200 as (milliseconds, usage, whether a draft begins with the right word)."""

    drafted: list[tuple[float, dict[str, Any], bool]] = field(default_factory=list)
    num_refused: int = 0


def main(
    prompts: Annotated[list[Path], typer.Option(help="JSON lines with prompt and reference. Repeatable.")],
    clients: Annotated[list[int], typer.Option(min=1, help="Number of clients. Repeatable.")] = CLIENTS,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of each run.")] = 10.0,
    num_drafts: Annotated[int, typer.Option("--num-drafts", "-k", min=1, help="Drafts per request.")] = 3,
    strategy: Annotated[str | None, typer.Option(help="Strategy of the requests. If not set, the default.")] = None,
    fixed: Annotated[
        bool, typer.Option("--fixed", help="Ask for all work, whatever the load (elastic: false).")
    ] = False,
    model: ServerModel = None,
    dtype: ServerDtype = None,
    num_threads: ServerNumThreads = None,
    plot: Annotated[Path | None, typer.Option(help="File for a plot, .svg or .png.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure what requests get by the number of clients: rows, tokens, hits, latency, refusals."""
    cases = [replace(case, text=last_words(case.text)) for case in read_prompts(prompts)]
    body = {"num_drafts": num_drafts} | ({} if strategy is None else {"strategy": strategy})
    if fixed:
        body["elastic"] = False
    options = serve_options(model=model, dtype=dtype, num_threads=num_threads)
    with local_server(options) as url:
        asyncio.run(run(url, cases, max(clients), WARM_UP_S, body))
        rows = [
            _row(number, seconds, asyncio.run(run(url, cases, number, seconds, body)))
            for number in tracked(clients, "clients")
        ]
    if plot is not None:
        _draw(plot, rows)
    settings = {"prompts": [path.name for path in prompts], "seconds": seconds, "request": body, "serve": options}
    report(__doc__, settings, as_json, rows=rows)


def last_words(text: str) -> str:
    """The end of a text that has this many words."""
    starts = [word.start() for word in re.finditer(r"\S+", text)]
    return text[starts[-PROMPT_WORDS:][0] :]


async def run(url: str, cases: Sequence[Prompt], num_clients: int, seconds: float, body: dict[str, Any]) -> Answers:
    """Let clients send requests for some time, in the order of the texts."""
    answers, waiting = Answers(), itertools.cycle(cases)
    async with http_client(url) as http:

        async def send(_: int) -> None:
            case = next(waiting)
            begun_s = time.perf_counter()
            answer = await http.post("/v1/drafts", json={"prompt": case.text, **body})
            if answer.status_code == httpx.codes.OK:
                found = answer.json()
                texts = [draft["text"] for draft in found["drafts"]]
                is_right = bool(exact_match(texts, case.continuation, 1))
                answers.drafted.append((1e3 * (time.perf_counter() - begun_s), found["usage"], is_right))
            else:
                answers.num_refused += 1
                await asyncio.sleep(RETRY_S)

        await in_turn(num_clients, send, seconds)
    return answers


def _row(num_clients: int, seconds: float, answers: Answers) -> dict[str, Any]:
    latencies = [ms for ms, _, _ in answers.drafted]
    usages = [usage for _, usage, _ in answers.drafted]

    def mean(name: str) -> float | None:
        return round(statistics.fmean(usage[name] for usage in usages), 2) if usages else None

    return {
        "clients": num_clients,
        "requests_per_s": round(len(latencies) / seconds, 1),
        "p50_ms": rounded_percentile(latencies, 50),
        "p95_ms": rounded_percentile(latencies, 95),
        "refused": answers.num_refused,
        "rows": mean("forward_rows"),
        "tokens": mean("completion_tokens"),
        "limited": mean("limited_by_load"),
        "em@1": round(statistics.fmean(is_right for _, _, is_right in answers.drafted), 3) if usages else None,
    }


def _draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    numbers = [row["clients"] for row in rows]
    alone = rows[0]
    series = {
        f"{label} ({alone[name]} with {numbers[0]})": (numbers, [row[name] / alone[name] for row in rows])
        for name, label in (("rows", "rows"), ("tokens", "tokens"), ("em@1", "first word right"))
        if alone[name]
    }
    curves(path, series, "clients", "per request, relative to the first")
