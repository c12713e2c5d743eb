"""Cost of a key press in a gap, for each layout of the prompt: the end of a line is typed key by key.

A server in this process is asked over HTTP, as `superdraft lab eval infill` asks it, and caches prompts as servers do.
The layouts take turns line by line. The cache is emptied before each line, so that the line's first key press is a new
prompt; the following ones find the prompts of the keys before.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import httpx
import typer

from superdraft.benchmarks.options import AsJson, Dtype, Model, NumDrafts
from superdraft.benchmarks.summary import make_report, percentile, plain_table, print_report, tracked
from superdraft.evaluation import options
from superdraft.evaluation.cases.infill_cases import InfillCase, chosen_cases, parse_window
from superdraft.evaluation.decoders.infill_requests import InfillDecoder
from superdraft.evaluation.decoders.infill_server import LAYOUTS, Variation, VariedEngine, served_here
from superdraft.evaluation.decoders.peers import SUPERDRAFT, TIMEOUT_S
from superdraft.evaluation.decoders.workbench import ModelChoice
from superdraft.server.errors import CommandError
from superdraft.server.observe.log_config import configure_logging

FIRST, FOLLOWING = "first", "following"
HEADS = ("layout", "key press", "n", "ms", "p95 ms", "prompt ms", "prompt tokens", "tokens run", "median", "rows")


@dataclass(frozen=True, slots=True)
class KeyPress:
    """The cost of one key press.

    Attributes:
        ms: from the request to the answer.
        prompt_tokens: length of the prompt.
        run_tokens: prompt tokens that were run now, because no earlier request had left them in the cache.
        prefill_ms: the prompt's pass.
        rows: model rows of the decode steps.
    """

    ms: float
    prompt_tokens: int
    run_tokens: int
    prefill_ms: float
    rows: int


Pressed = Mapping[tuple[str, str], Sequence[KeyPress]]
"""Key presses by layout and by `FIRST` or `FOLLOWING` of their line."""


def main(
    cases: options.Cases = None,
    from_source: options.FromSource = None,
    kind: options.Kind = "mid",
    context_lines: options.ContextLines = None,
    limit: options.CaseLimit = None,
    seed: options.CaseSeed = 0,
    keys: Annotated[int, typer.Option(min=2, help="Maximum number of key presses per line.")] = 10,
    num_drafts: NumDrafts = 3,
    max_tokens: options.GapTokens = None,
    model: Model = "qwen2.5-coder-0.5b",
    dtype: Dtype = "auto",
    device: options.Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Type the ends of lines of code key by key and measure the cost of each layout of a gap's prompt."""
    configure_logging("warning", "console")
    window = parse_window(context_lines)
    found = chosen_cases(cases, from_source, kind, limit, seed, window)
    chosen = [case for case in found if typed_stages(case, keys)]
    if not chosen:
        raise CommandError("No line has text between its indentation and the cursor; use cases of another kind.")
    with (
        served_here(ModelChoice(model, dtype, device), keeps_prompts=True) as (url, engine),
        httpx.Client(base_url=url, timeout=TIMEOUT_S) as http,
    ):
        token_limit = engine.max_tokens if max_tokens is None else min(max_tokens, engine.max_tokens)
        rows = rows_of(type_all(chosen, keys, _decoders(http, engine, num_drafts, token_limit), engine))
        settings = {
            "model": model,
            "dtype": dtype,
            "num_drafts": num_drafts,
            "max_tokens": token_limit,
            "lines": len(chosen),
            "keys": keys,
            "context_lines": window,
            "defaults": engine.defaults,
        }
    print_report(make_report(__doc__, settings, rows=rows), [plain_table(rows, heads=HEADS)], as_json)


def _decoders(http: httpx.Client, engine: VariedEngine, num_drafts: int, max_tokens: int) -> dict[str, InfillDecoder]:
    """A decoder per layout, warmed up."""
    decoders: dict[str, InfillDecoder] = {}
    for layout in LAYOUTS:
        engine.check(Variation(layout))
        decoders[layout] = InfillDecoder(http, SUPERDRAFT, num_drafts, max_tokens, engine, Variation(layout))
        decoders[layout].warm_up()
    return decoders


def type_all(
    cases: Sequence[InfillCase], num_keys: int, decoders: Mapping[str, InfillDecoder], engine: VariedEngine
) -> Pressed:
    """Type the end of every case's line once per layout; the layout that comes first changes from line to line."""
    pressed: dict[tuple[str, str], list[KeyPress]] = defaultdict(list)
    names = list(decoders)
    for number, case in enumerate(tracked(cases, "typing", transient=True)):
        turn = number % len(names)
        for layout in (*names[turn:], *names[:turn]):
            engine.forget_prompts()
            for index, stage in enumerate(typed_stages(case, num_keys)):
                ms = 1000 * decoders[layout].decode(stage).wall_s
                pressed[layout, FOLLOWING if index else FIRST].append(_key_press(ms, engine))
    return pressed


def typed_stages(case: InfillCase, num_keys: int) -> list[InfillCase]:
    """The text after each of the last key presses before the cursor; editors insert the indentation themselves."""
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
    """A row per layout and kind of key press, first key presses before following ones."""
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
