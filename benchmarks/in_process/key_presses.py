"""Savings of prefix reuse while a user types: prompt tokens and milliseconds per key press, with it and without.

The last characters of each prompt are typed one at a time, and each key press requests drafts. Each prompt is typed
twice: in an engine that keeps what it has run, and in one that is made to forget it before every key press. Only the
prompt's pass is timed.
"""

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer

from superdraft.benchmarks.options import AsJson, Dtype, Model
from superdraft.benchmarks.summary import make_report, plain_table, print_report, tracked
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.loading.loader import load_model
from superdraft.decoding.loading.store import DEFAULT_MODEL
from superdraft.decoding.params import GenerationParams
from superdraft.evaluation.cases.prompts import read_rows

MAX_MODEL_LEN = 1024
MIN_PROMPT_CHARS = 60
HEADS = ("prefix reuse", "key presses", "tokens per key press", "prefill ms (median)", "speed-up of the prefill")


def main(
    model: Model = DEFAULT_MODEL,
    dtype: Dtype = "auto",
    prompts: Annotated[
        Path | None, typer.Option(help="JSON lines with a field prompt. If not set, beginnings of built-in texts.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of prompts to type.")] = 200,
    keys: Annotated[int, typer.Option(min=1, help="Key presses per prompt.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Type prompts key by key and measure what the reuse of prefixes saves."""
    texts = built_in_prompts(limit)[:limit] if prompts is None else read_texts(prompts, limit)
    loaded = load_model(model, dtype=dtype)
    rows = measure(build_engine(loaded, EngineConfig(max_model_len=MAX_MODEL_LEN, num_slots=1)), texts, keys)
    settings = {
        "model": loaded.name,
        "dtype": dtype,
        "prompts": "built in" if prompts is None else prompts.name,
        "num_prompts": len(texts),
        "keys_per_prompt": keys,
    }
    print_report(make_report(__doc__, settings, rows=rows), [plain_table(rows, heads=HEADS)], as_json)


def read_texts(path: Path, limit: int) -> list[str]:
    """The prompts of a file of JSON lines, at most `limit`.

    Raises:
        CommandError: the file cannot be read, or a line has no prompt.
    """
    return read_rows([path], lambda _path, _number, row: str(row["prompt"]), limit)


def built_in_prompts(count: int) -> list[str]:
    """Beginnings of the built-in texts, cut at `count` different places."""
    cuts = -(-count // len(TEXTS))
    return [
        text[: MIN_PROMPT_CHARS + (len(text) - MIN_PROMPT_CHARS) * cut // cuts] for text in TEXTS for cut in range(cuts)
    ]


def measure(engine: Engine, prompts: list[str], num_keys: int) -> list[dict[str, Any]]:
    """Type the end of every prompt without reuse and with it. The latter is compared with the former."""
    params = GenerationParams(max_tokens=1, alpha=0, token_healing=True)
    prefilled: dict[str, list[int]] = {"without": [], "with": []}
    prefill_ms: dict[str, list[float]] = {name: [] for name in prefilled}
    for prompt in tracked(prompts, "typing"):
        start = max(len(prompt) - num_keys, 1)
        for name, tokens in prefilled.items():
            engine.forget_prompts()
            for end in range(start, len(prompt) + 1):
                if name == "without":
                    engine.forget_prompts()
                before = engine.num_prefilled_tokens
                output = engine.generate(prompt[:end], params)
                if end > start:  # the first is the text before the first key press
                    tokens.append(engine.num_prefilled_tokens - before)
                    prefill_ms[name].append(output.timings.prefill_ms)
    baseline = statistics.fmean(next(iter(prefill_ms.values())))
    return [
        {
            "prefix_reuse": name,
            "key_presses": len(prefilled[name]),
            "prefilled_tokens_mean": round(statistics.fmean(prefilled[name]), 2),
            "prefill_ms_median": round(statistics.median(prefill_ms[name]), 2),
            "speed_up": round(baseline / statistics.fmean(prefill_ms[name]), 2),
        }
        for name in prefilled
    ]
