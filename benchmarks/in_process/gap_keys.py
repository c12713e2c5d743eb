"""What a key press costs in a gap, for each layout of the prompt: the end of a line is typed key by key.

A server in this process is asked over HTTP, as `superdraft eval infill` asks it, and keeps prompts as servers do. The
layouts take turns line by line. Before a line is typed nothing is kept, so that its first key press is a new prompt;
the others find the prompts of the keys before.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from superdraft.benchmarks.machine import describe_machine
from superdraft.benchmarks.summary import percentile, print_report
from superdraft.evaluation.cases.infill_cases import InfillCase, chosen_cases
from superdraft.evaluation.decoders.infill_requests import InfillDecoder
from superdraft.evaluation.decoders.infill_server import LAYOUTS, Variation, VariedEngine, served_here
from superdraft.evaluation.decoders.peers import SUPERDRAFT, TIMEOUT_S
from superdraft.evaluation.decoders.workbench import ModelChoice
from superdraft.server.errors import CommandError

FIRST, FOLLOWING = "first", "following"


@dataclass(frozen=True, slots=True)
class CaseChoice:
    """Which lines are typed; the fields are the arguments of `chosen_cases`."""

    file: Path | None
    source: Path | None
    kind: str
    limit: int | None
    seed: int
    window: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class KeyPress:
    """What one key press took.

    Attributes:
        ms: from the request to the answer.
        prompt_tokens: of the prompt.
        run_tokens: of these, not kept from an earlier request, so run now.
        prefill_ms: the prompt's pass.
        rows: model rows of the decode steps.
    """

    ms: float
    prompt_tokens: int
    run_tokens: int
    prefill_ms: float
    rows: int


Pressed = Mapping[tuple[str, str], Sequence[KeyPress]]
"""By layout, and whether it is the first key press of its line."""


def main(
    *, cases: CaseChoice, num_keys: int, models: ModelChoice, num_drafts: int, max_tokens: int | None, as_json: bool
) -> None:
    """Measure and print.

    Args:
        cases: where is typed.
        num_keys: key presses of each line, at most what stands between its indentation and the cursor.
        models: the language model.
        num_drafts: k.
        max_tokens: of each draft; None: the server's limit for editors.
        as_json: print JSON instead of a table.

    Raises:
        CommandError: there are no cases, or the model has no layouts.
    """
    found = chosen_cases(cases.file, cases.source, cases.kind, cases.limit, cases.seed, cases.window)
    chosen = [case for case in found if typed_stages(case, num_keys)]
    if not chosen:
        raise CommandError("No line has anything but its indentation before the cursor; take cases of another kind.")
    with (
        served_here(models, keeps_prompts=True) as (url, engine),
        httpx.Client(base_url=url, timeout=TIMEOUT_S) as http,
    ):
        limit = engine.max_tokens if max_tokens is None else min(max_tokens, engine.max_tokens)
        decoders = {}
        for layout in LAYOUTS:
            engine.check(Variation(layout))
            decoders[layout] = InfillDecoder(http, SUPERDRAFT, num_drafts, limit, engine, Variation(layout))
            decoders[layout].warm_up()
        rows = rows_of(type_all(chosen, num_keys, decoders, engine))
        report = {
            "question": __doc__.splitlines()[0],
            "machine": describe_machine(),
            "settings": {
                "model": models.model,
                "dtype": models.dtype,
                "num_drafts": num_drafts,
                "max_tokens": limit,
                "lines": len(chosen),
                "keys": num_keys,
                "context_lines": cases.window,
                "defaults": engine.defaults,
            },
            "rows": rows,
        }
    print_report(report, [_table(rows)], as_json)


def type_all(
    cases: Sequence[InfillCase], num_keys: int, decoders: Mapping[str, InfillDecoder], engine: VariedEngine
) -> Pressed:
    """Type the end of every case's line, once for each layout, beginning with another layout for each line."""
    pressed: dict[tuple[str, str], list[KeyPress]] = defaultdict(list)
    names = list(decoders)
    for number, case in enumerate(track(cases, "typing", console=Console(stderr=True), transient=True)):
        turn = number % len(names)
        for layout in (*names[turn:], *names[:turn]):
            engine.forget_prompts()
            for index, stage in enumerate(typed_stages(case, num_keys)):
                ms = 1000 * decoders[layout].decode(stage).wall_s
                pressed[layout, FOLLOWING if index else FIRST].append(_key_press(ms, engine))
    return pressed


def typed_stages(case: InfillCase, num_keys: int) -> list[InfillCase]:
    """What stands there after each of the last keys before the cursor; an editor types the indentation by itself."""
    line = case.prefix[case.prefix.rfind("\n") + 1 :]
    count = min(num_keys, len(line.lstrip()))
    end = len(case.prefix)
    return [replace(case, prefix=case.prefix[: end - left]) for left in reversed(range(count))]


def _key_press(ms: float, engine: VariedEngine) -> KeyPress:
    assert engine.output is not None
    usage = engine.output.usage
    num_run = usage.prompt_tokens - usage.cached_tokens
    return KeyPress(ms, usage.prompt_tokens, num_run, engine.output.timings.prefill_ms, usage.forward_rows)


def rows_of(pressed: Pressed) -> list[dict[str, Any]]:
    """A row for each layout and kind of key press, those of the first key presses before the others."""
    rows = []
    for which in (FIRST, FOLLOWING):
        for (layout, own), presses in pressed.items():
            if own != which:
                continue
            times_ms = [press.ms for press in presses]
            rows.append(
                {
                    "layout": layout,
                    "key_press": which,
                    "count": len(presses),
                    "median_ms": round(statistics.median(times_ms), 1),
                    "p95_ms": round(percentile(times_ms, 95), 1),
                    "prefill_ms_median": round(statistics.median(press.prefill_ms for press in presses), 1),
                    "prompt_tokens_mean": round(statistics.fmean(press.prompt_tokens for press in presses), 1),
                    "run_tokens_mean": round(statistics.fmean(press.run_tokens for press in presses), 1),
                    "run_tokens_median": statistics.median(press.run_tokens for press in presses),
                    "rows_mean": round(statistics.fmean(press.rows for press in presses), 1),
                }
            )
    return rows


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        *("layout", "key press", "n", "ms", "p95 ms", "prompt ms", "prompt tokens", "tokens run", "median", "rows")
    )
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table
