"""Cost of the n-gram model in a decode step.

A step scores m candidates for each of k drafts in one call and advances each draft's state by one token. Contexts and
candidates are taken from random places of a text: each draft's own next token is among its candidates, the others come
from elsewhere.
"""

import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from superdraft.benchmarks.options import AsJson
from superdraft.benchmarks.summary import percentile, report
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.loading.loader import load_tokenizer
from superdraft.ngram_models.building.corpus import read_sequences
from superdraft.ngram_models.building.encoder import Encoder
from superdraft.ngram_models.scoring.scorer import KenLMScorer
from superdraft.ngram_models.store.manifest import Manifest
from superdraft.ngram_models.store.registry import find_ngram_model, open_scorer
from superdraft.server.errors import CommandError

SHAPES = ((3, 9), (8, 64))  # (k, m): the paper's settings, and those of a long list of drafts
MODELS = ["smollm2-135m"]
MAX_TEXT_TOKENS = 1_000_000
_WARM_UP_STEPS = 20

Step = tuple[list[list[int]], list[list[int]], list[int]]


def main(
    models: Annotated[list[str], typer.Argument(help="Names or folders of n-gram models.")] = MODELS,
    text: Annotated[
        Path | None, typer.Option(help="Text or .jsonl file to take contexts from. If not set, short built-in texts.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time, for each k and m.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Time the n-gram model's part of a decode step, for k = 3, m = 9 and k = 8, m = 64."""
    rows = []
    for name in models:
        folder = find_ngram_model(name)
        manifest = Manifest.read(folder)
        tokens = _tokens(manifest, text)
        for k, m in SHAPES:
            rows.append({"ngram_model": name, "mb": round(manifest.binary_bytes / 1e6, 1), "k": k, "m": m})
            rows[-1] |= measure(open_scorer(folder, manifest), _steps(tokens, manifest.order, k, m), steps)
    settings = {"text": str(text or "built in"), "steps": steps}
    report(__doc__, settings, as_json, rows=rows)


def measure(scorer: KenLMScorer, steps: Iterator[Step], num_steps: int) -> dict[str, float]:
    """Microseconds per step and per candidate, after some steps that are not counted."""
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
        "step_us": round(median, 1),
        "step_us_p95": round(percentile(times, 95), 1),
        "step_us_per_candidate": round(median / num_candidates, 3),
    }


def run_step(scorer: KenLMScorer, states: list[Any], step: Step) -> None:
    """Run one step of drafts in these states: score the candidates, then advance each draft by one token."""
    _, candidates, chosen = step
    scorer.score(states, candidates)
    for state, token_id in zip(states, chosen, strict=True):
        scorer.advance(state, token_id)


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
    """Endless steps, the same for the same text: contexts [k], candidates [k][m], chosen tokens [k]."""
    source = random.Random(0)  # noqa: S311 (the same steps in every run)
    while True:
        places = [source.randrange(order, len(tokens)) for _ in range(k)]
        contexts = [tokens[place - order + 1 : place] for place in places]
        chosen = [tokens[place] for place in places]
        candidates = [[token_id, *source.choices(tokens, k=m - 1)] for token_id in chosen]
        yield contexts, candidates, chosen
