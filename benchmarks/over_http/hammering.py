"""Clients that send the next request as soon as they are answered or refused, whatever the refusal says.

Two phases on one server with default settings: a few clients, then many. What a refusal costs the event loop is time
that accepted requests lack.
"""

import asyncio
from typing import Annotated

import typer

from superdraft.benchmarks.answers import Answers, different_prompts
from superdraft.benchmarks.options import AsJson, ServerDtype, ServerModel
from superdraft.benchmarks.over_http.local_server import http_client, local_server, serve_options
from superdraft.benchmarks.over_http.overload import MAX_SLOWDOWN, saturate
from superdraft.benchmarks.summary import count_text, make_report, plain_table, print_promises
from superdraft.server.cli.settings_options import setting
from superdraft.server.settings import Settings

FEW_CLIENTS = 4
MAX_REFUSAL_MS = 100.0


def main(
    clients: Annotated[int, typer.Option(min=1, help="Clients that hammer.")] = 64,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of hammering.")] = 60.0,
    baseline: Annotated[float, typer.Option(min=1, help="Seconds with few clients.")] = 10.0,
    model: ServerModel = None,
    dtype: ServerDtype = None,
    target_latency_ms: Annotated[int | None, setting("target_latency_ms")] = None,
    as_json: AsJson = False,
) -> None:
    """Hammer at a server. Exit code 1 if it does not keep its promises."""
    options = serve_options(model=model, dtype=dtype, target_latency_ms=target_latency_ms)
    target_ms = target_latency_ms or Settings.model_fields["target_latency_ms"].default
    with local_server(options) as url:
        few, many = asyncio.run(_phases(url, clients, baseline, seconds))
    rows = [few.row(f"{FEW_CLIENTS} clients", baseline), many.row(f"{clients} clients", seconds)]
    hammered = rows[1]
    kept = {
        "every request answered": all(row["sent"] == row["answered"] for row in rows),
        f"refusals within {MAX_REFUSAL_MS:g} ms (p95)": (hammered["refused_p95_ms"] or 0) <= MAX_REFUSAL_MS,
        f"accepted p95 within {MAX_SLOWDOWN} times the target": (hammered["p95_ms"] or 0) <= MAX_SLOWDOWN * target_ms,
    }
    report = make_report(__doc__, {"clients": clients, "serve_options": options}, phases=rows, kept=kept)
    print_promises(report, [plain_table([{**row, "answers": count_text(row["answers"])} for row in rows])], as_json)


async def _phases(url: str, num_clients: int, baseline_s: float, seconds: float) -> tuple[Answers, Answers]:
    async with http_client(url) as http:
        prompts = different_prompts()
        few = await saturate(http, prompts, baseline_s, FEW_CLIENTS)
        return few, await saturate(http, prompts, seconds, num_clients)
