"""What the n-gram model costs in a decode step, warm and cold.

A step scores m candidates of each of k drafts in one call and moves each draft's state on by one token. The contexts
and the candidates are taken from a text, at random places: each draft's own next token is among its candidates, the
others come from elsewhere. *Warm* is the median of many steps. *Cold* is the first step after the model's file was put
out of the page cache, the states of its contexts included, so that every part it needs comes from the disk.
"""

import json
import os
import random
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from superdraft.benchmarks.machine import describe_machine
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.loading.loader import load_tokenizer
from superdraft.ngram_models.building.corpus import read_sequences
from superdraft.ngram_models.building.encoder import Encoder
from superdraft.ngram_models.scoring.scorer import KenLMScorer
from superdraft.ngram_models.store.manifest import BINARY_FILE, Manifest
from superdraft.ngram_models.store.registry import find_ngram_model, open_scorer
from superdraft.server.errors import CommandError

# k and m, as in the paper's settings and as for the longest list of drafts.
SHAPES = ((3, 9), (8, 64))
MAX_TEXT_TOKENS = 1_000_000
_WARM_UP_STEPS = 20

Step = tuple[list[list[int]], list[list[int]], list[int]]


def main(models: list[str], text: Path | None, steps: int, cold_starts: int, as_json: bool) -> None:
    """Measure and print.

    Args:
        models: names or folders of n-gram models.
        text: where contexts and candidates are from; None: built-in texts, which are short.
        steps: timed warm steps of each shape.
        cold_starts: how often the file is put out of the page cache, for each shape; 0: not at all.
        as_json: print JSON instead of a table.

    Raises:
        CommandError: the text is too short, or the page cache cannot be emptied on this system.
    """
    if cold_starts and not hasattr(os, "posix_fadvise"):
        raise CommandError("This system cannot put a file out of its page cache: use --cold-starts 0.")
    rows = []
    for name in models:
        folder = find_ngram_model(name)
        manifest = Manifest.read(folder)
        tokens = _tokens(manifest, text)
        for k, m in SHAPES:
            rows.append({"ngram_model": name, "mb": round(manifest.binary_bytes / 1e6, 1), "k": k, "m": m})
            rows[-1] |= measure_warm(open_scorer(folder, manifest), _steps(tokens, manifest.order, k, m), steps)
            rows[-1] |= measure_cold(folder, manifest, _steps(tokens, manifest.order, k, m), cold_starts)
    report = {
        "question": __doc__.splitlines()[0],
        "machine": describe_machine(),
        "settings": {"text": str(text or "built in"), "steps": steps, "cold_starts": cold_starts},
        "rows": rows,
    }
    _print(report, as_json)


def measure_warm(scorer: KenLMScorer, steps: Iterator[Step], num_steps: int) -> dict[str, float]:
    """Microseconds a step, and a candidate, after some steps that are not counted."""
    times, num_candidates = [], 1
    for number, step in zip(range(num_steps + _WARM_UP_STEPS), steps, strict=False):
        contexts, candidates, _ = step
        num_candidates = sum(map(len, candidates))
        states = [scorer.initial_state(context) for context in contexts]
        start = time.perf_counter()
        run_step(scorer, states, step)
        if number >= _WARM_UP_STEPS:
            times.append(1e6 * (time.perf_counter() - start))
    median = statistics.median(times)
    return {
        "warm_us": round(median, 1),
        "warm_us_p95": round(sorted(times)[int(0.95 * (len(times) - 1))], 1),
        "warm_us_a_candidate": round(median / num_candidates, 3),
    }


def measure_cold(folder: Path, manifest: Manifest, steps: Iterator[Step], num_starts: int) -> dict[str, float]:
    """Milliseconds of the first step after the file left the page cache, and how often it had to wait for the disk."""
    times, faults = [], []
    for _, step in zip(range(num_starts), steps, strict=False):
        scorer = open_scorer(folder, manifest)
        evict(folder / BINARY_FILE)
        faults_before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        start = time.perf_counter()
        run_step(scorer, [scorer.initial_state(context) for context in step[0]], step)
        times.append(1e3 * (time.perf_counter() - start))
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults_before)
    if not times:
        return {}
    return {
        "cold_ms": round(statistics.median(times), 2),
        "cold_ms_max": round(max(times), 2),
        "cold_page_faults": statistics.median(faults),
    }


def run_step(scorer: KenLMScorer, states: list[Any], step: Step) -> None:
    """One step of drafts in these states: scoring, then one token more for each draft."""
    _, candidates, chosen = step
    scorer.score(states, candidates)
    for state, token_id in zip(states, chosen, strict=True):
        scorer.advance(state, token_id)


def evict(path: Path) -> None:
    """Put a file out of the page cache, except for the parts that a process has mapped and touched."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _tokens(manifest: Manifest, text: Path | None) -> list[int]:
    encoder = Encoder(load_tokenizer(manifest.tokenizer.name))
    if text is None:
        return [token_id for token_ids in encoder(list(TEXTS)) for token_id in token_ids]
    tokens: list[int] = []
    for sequence in read_sequences([str(text)], encode=encoder, end_of_text_id=None):
        tokens += sequence
        if len(tokens) >= MAX_TEXT_TOKENS:
            break
    if len(tokens) <= manifest.order:
        raise CommandError(f"The text has {len(tokens)} tokens, too few to take contexts from.")
    return tokens


def _steps(tokens: list[int], order: int, k: int, m: int) -> Iterator[Step]:
    """Endless steps, the same ones for the same text: contexts [k], candidates [k][m], chosen tokens [k]."""
    # Not for secrets.
    source = random.Random(0)  # noqa: S311
    while True:
        places = [source.randrange(order, len(tokens)) for _ in range(k)]
        contexts = [tokens[place - order + 1 : place] for place in places]
        chosen = [tokens[place] for place in places]
        candidates = [[token_id, *source.choices(tokens, k=m - 1)] for token_id in chosen]
        yield contexts, candidates, chosen


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 (standard output is the product here)
        return
    table = Table(
        Column("model", overflow="fold"), "MB", "k, m", "warm us", "95 %", "/ candidate", "cold ms", "max", "faults"
    )
    for row in report["rows"]:
        cold = [str(row.get(key, "-")) for key in ("cold_ms", "cold_ms_max", "cold_page_faults")]
        warm = [str(row[key]) for key in ("warm_us", "warm_us_p95", "warm_us_a_candidate")]
        table.add_row(row["ngram_model"], str(row["mb"]), f"{row['k']}, {row['m']}", *warm, *cold)
    console = Console()
    console.print(table)
    console.print({"machine": report["machine"], "settings": report["settings"]})
