"""What prefix reuse saves while somebody types: prompt tokens and milliseconds of each key press, with it and without.

The last characters of each prompt are typed one at a time, each key press asking for drafts anew. Two engines over the
same weights take turns key by key: one keeps prompts, the other has no room to. Only the prompt's part is measured.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from superdraft.benchmarks.machine import describe_machine
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.loading.loader import load_model
from superdraft.decoding.params import GenerationParams
from superdraft.server.errors import CommandError

MAX_MODEL_LEN = 1024
MIN_PROMPT_CHARS = 60


def main(model: str, dtype: str, prompts: Path | None, num_prompts: int, num_keys: int, as_json: bool) -> None:
    """Measure and print.

    Args:
        model: as for the server.
        dtype: as for the server.
        prompts: JSON lines with a field `prompt`; None: cuts of texts that come with the benchmark.
        num_prompts: how many are typed.
        num_keys: key presses of each.
        as_json: print JSON instead of a table.
    """
    texts = (read_prompts(prompts) if prompts is not None else built_in_prompts(num_prompts))[:num_prompts]
    loaded = load_model(model, dtype=dtype)
    keeping = build_engine(loaded, EngineConfig(max_model_len=MAX_MODEL_LEN, num_slots=1))
    slot_bytes = keeping.kv_bytes_per_position * keeping.max_model_len
    forgetful = build_engine(loaded, EngineConfig(max_model_len=MAX_MODEL_LEN, num_slots=1, kv_memory_bytes=slot_bytes))
    rows = measure({"without": forgetful, "with": keeping}, texts, num_keys)
    settings = {
        "model": loaded.name,
        "dtype": dtype,
        "prompts": str(prompts.name) if prompts is not None else "built in",
        "num_prompts": len(texts),
        "keys_per_prompt": num_keys,
    }
    _print(
        {"question": __doc__.splitlines()[0], "machine": describe_machine(), "settings": settings, "rows": rows},
        as_json,
    )


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file of JSON lines.

    Raises:
        CommandError: a line holds no prompt.
    """
    number = 0
    texts = []
    try:
        with path.open() as file:
            for line in file:
                number += 1
                texts.append(str(json.loads(line)["prompt"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{path}, line {number}: not JSON with a field prompt ({type(error).__name__}).") from None
    return texts


def built_in_prompts(count: int) -> list[str]:
    """Beginnings of the built-in texts, cut at `count` different places."""
    cuts = -(-count // len(TEXTS))
    return [
        text[: MIN_PROMPT_CHARS + (len(text) - MIN_PROMPT_CHARS) * cut // cuts] for text in TEXTS for cut in range(cuts)
    ]


def measure(engines: dict[str, Engine], prompts: list[str], num_keys: int) -> list[dict[str, Any]]:
    """Type the end of every prompt into every engine; the first engine is what the others are compared with."""
    params = GenerationParams(max_tokens=1, alpha=0, token_healing=True)
    prefilled: dict[str, list[int]] = {name: [] for name in engines}
    prefill_ms: dict[str, list[float]] = {name: [] for name in engines}
    for prompt in track(prompts, "typing", console=Console(stderr=True)):
        start = max(len(prompt) - num_keys, 1)
        for end in range(start, len(prompt) + 1):
            for name, engine in engines.items():
                before = engine.num_prefilled_tokens
                output = engine.generate(prompt[:end], params)
                if end == start:  # what was there before the typing began
                    continue
                prefilled[name].append(engine.num_prefilled_tokens - before)
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
        for name in engines
    ]


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 (standard output is the product here)
        return
    table = Table("prefix reuse", "key presses", "tokens run each", "prefill ms (median)", "speed-up of the prefill")
    for row in report["rows"]:
        table.add_row(*(str(value) for value in row.values()))
    console = Console()
    console.print(table)
    console.print({"machine": report["machine"], "settings": report["settings"]})
