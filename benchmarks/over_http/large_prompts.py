"""A small client beside prompts of a mebibyte, which must not hold up the model.

Two phases on one server, with the same small client, which sends a request after every pause. *Alone*: nothing else
happens. *Beside*: another client sends prompts as long as a body may be, of digits, prose and spaces in turn; their
tokens are hard to count without encoding them. They do not fit into the context and are refused.
"""

import asyncio
import contextlib
import itertools
import time
from typing import Annotated

import httpx
import typer

from superdraft.benchmarks.answers import Answers, different_prompts
from superdraft.benchmarks.options import AsJson, ServerDtype, ServerModel
from superdraft.benchmarks.over_http.local_server import http_client, local_server, serve_options
from superdraft.benchmarks.summary import count_text, make_report, plain_table, print_promises
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.server.cli.settings_options import setting

NUM_CHARS = 1024 * 1024 - 1024  # the rest of the largest body is JSON
WARM_UP_S = 3.0
PAUSE_S = 0.1
MAX_SLOWDOWN = 1.1
KINDS = ("7", " ".join(TEXTS) + " ", " ")


def main(
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of each phase.")] = 30.0,
    per_s: Annotated[float, typer.Option(min=0.1, help="Large prompts per second.")] = 4.0,
    model: ServerModel = None,
    dtype: ServerDtype = None,
    prompt_too_long: Annotated[str | None, setting("prompt_too_long")] = None,
    as_json: AsJson = False,
) -> None:
    """Send large prompts beside a small client. Exit code 1 if the small client notices."""
    options = serve_options(model=model, dtype=dtype, prompt_too_long=prompt_too_long)
    with local_server(options) as url:
        alone, beside, large = asyncio.run(_phases(url, seconds, per_s))
    rows = [each.row(name, seconds) for name, each in (("alone", alone), ("beside", beside), ("large prompts", large))]
    kept = {
        "every request answered": all(row["sent"] == row["answered"] for row in rows),
        f"p95 within {MAX_SLOWDOWN} times that alone": (
            bool(rows[1]["p95_ms"]) and rows[1]["p95_ms"] <= MAX_SLOWDOWN * rows[0]["p95_ms"]
        ),
    }
    settings = {"per_s": per_s, "num_chars": NUM_CHARS, "serve_options": options}
    report = make_report(__doc__, settings, phases=rows, kept=kept)
    print_promises(report, [plain_table([{**row, "answers": count_text(row["answers"])} for row in rows])], as_json)


async def _phases(url: str, seconds: float, per_s: float) -> tuple[Answers, Answers, Answers]:
    async with http_client(url) as http:
        await _small(http, WARM_UP_S)
        alone, large = await _small(http, seconds), Answers()
        sending = asyncio.create_task(_send_large(http, large, per_s))
        beside = await _small(http, seconds)
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
        large.num_sent = large.statuses.total()  # the last one was cut off
    return alone, beside, large


async def _small(http: httpx.AsyncClient, seconds: float) -> Answers:
    answers, end_s = Answers(), time.perf_counter() + seconds
    for prompt in different_prompts():
        if time.perf_counter() >= end_s:
            break
        await answers.ask(http, prompt)
        await asyncio.sleep(PAUSE_S)
    return answers


async def _send_large(http: httpx.AsyncClient, answers: Answers, per_s: float) -> None:
    prompts = [(kind * (NUM_CHARS // len(kind) + 1))[:NUM_CHARS] for kind in KINDS]
    for prompt in itertools.cycle(prompts):
        await answers.ask(http, prompt)
        await asyncio.sleep(1 / per_s)
