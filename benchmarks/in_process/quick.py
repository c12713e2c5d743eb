"""Regression check of the engine's speed, by ratios of times that were recorded before.

Everything runs in one process in turns, and only ratios are compared: they change little from one machine to another,
and little when the machine is shared. Each ratio has a tolerance that is wide enough for a busy machine.
"""

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from superdraft.benchmarks.in_process.step import PROMPT, TOKENS_PER_RUN
from superdraft.benchmarks.options import AsJson
from superdraft.benchmarks.peers import transformers_peer
from superdraft.benchmarks.summary import make_report, print_report, ratio, shown, tracked
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.loading.loader import load_model
from superdraft.decoding.model.fused_decoder import FusedDecoder
from superdraft.decoding.model.torch_runner import TorchRunner
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.params import GenerationParams
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
from superdraft.server.errors import CommandError
from superdraft.server.loading import choose_ngram_model
from superdraft.server.settings import Settings

MODEL = "smollm2-135m"
RECORDED = Path(__file__).with_name("quick.json")
WARM_UP_ROUNDS = 2
KEY_PRESS_TOKENS = 8
KEY_PRESS_CHARS = 200
_CONFIG = EngineConfig(max_model_len=512, num_slots=16, kv_memory_bytes=512 * 1024**2)

Timed = dict[str, Callable[[], float]]


@dataclass(frozen=True, slots=True)
class Question:
    """A ratio that should not grow.

    Attributes:
        name: description of the two times.
        above: contender whose time is the numerator.
        below: contender whose time is the denominator.
        tolerance: share by which the ratio may grow.
    """

    name: str
    above: str
    below: str
    tolerance: float


# Our own time is the numerator: smaller is better.
QUESTIONS = (
    Question("superposed step, k = 3 / greedy step", "superposed 3", "greedy", 0.10),
    Question("superposed step, k = 8 / greedy step", "superposed 8", "greedy", 0.10),
    Question("step with int4 weights / with bfloat16", "greedy", "greedy bfloat16", 0.25),
    Question("fused forward / transformers' own, bfloat16, one row", "fused", "plain", 0.20),
    Question("request, superposed k = 3 / sampled k = 3", "request superposed", "request sample", 0.25),
    Question("request, superposed k = 3 / transformers' generate, 3 drafts", "request superposed", "generate", 0.30),
    Question("key press with a warm prefix / without", "warm key", "cold key", 0.25),
)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of all contenders.")] = 15,
    record: Annotated[bool, typer.Option("--record", help="Record the ratios instead of comparing them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare ratios of the engine's times with the recorded ones. Exit code 1 if one exceeds its tolerance."""
    recorded = {} if record else read_recorded()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads on a busy machine wait for each other
    try:
        times = take_turns(_contenders(), rounds)
    finally:
        torch.set_num_threads(threads)
    rows = compare(times, recorded)
    settings = {"model": MODEL, "rounds": rounds, "threads": 1}
    report = make_report(__doc__, settings, rows=rows)
    if record:
        RECORDED.write_text(json.dumps(report, indent=2) + "\n")
    regressions = [row for row in rows if row["regressed"]]
    print_report(report, [_table(rows)], as_json, notes=[_told(row) for row in regressions])
    if regressions:
        raise typer.Exit(1)


def read_recorded() -> dict[str, float]:
    """The recorded median ratio of each question.

    Raises:
        CommandError: a question has none.
    """
    try:
        rows = json.loads(RECORDED.read_text())["rows"]
        found = {row["name"]: float(row["ratio"]["median"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{RECORDED} cannot be read ({type(error).__name__}); --record writes a new one.") from None
    missing = [question.name for question in QUESTIONS if question.name not in found]
    if missing:
        raise CommandError(f"{RECORDED} has no ratio for {missing[0]!r}; --record writes a new one.")
    return found


def take_turns(contenders: Timed, rounds: int) -> dict[str, list[float]]:
    """The times of each contender, round by round."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in tracked(range(rounds + WARM_UP_ROUNDS), "measuring"):
        for name, run in contenders.items():
            took = run()
            if number >= WARM_UP_ROUNDS:
                times[name].append(took)
    return times


def compare(times: dict[str, list[float]], recorded: dict[str, float]) -> list[dict[str, Any]]:
    """Each question's ratio now and as recorded, and whether it grew by more than its tolerance."""
    rows = []
    for question in QUESTIONS:
        now = ratio(times[question.above], times[question.below])
        row: dict[str, Any] = {"name": question.name, "ratio": now, "tolerance": question.tolerance, "regressed": False}
        if recorded:
            row["recorded"] = recorded[question.name]
            row["regressed"] = now["median"] > recorded[question.name] * (1 + question.tolerance)
        rows.append(row)
    return rows


def _contenders() -> Timed:
    int4, bfloat16 = (
        build_engine(load_model(MODEL, device="cpu", dtype=dtype), _CONFIG) for dtype in ("int4", "bfloat16")
    )
    ngram_model = choose_ngram_model(Settings(), tokenizer_fingerprint(int4.tokenizer.vocabulary))
    scorer = None if ngram_model is None else ngram_model.scorer
    greedy = GenerationParams(num_drafts=1, alpha=0, max_tokens=TOKENS_PER_RUN)
    three, eight = (GenerationParams(num_drafts=k, max_tokens=TOKENS_PER_RUN) for k in (3, 8))
    sampled = GenerationParams(num_drafts=3, strategy="sample", top_p=0.9, max_tokens=TOKENS_PER_RUN, seed=1)
    generate = transformers_peer(MODEL, "bfloat16", 1, 3, TOKENS_PER_RUN)
    prompt_ids = int4.tokenizer.encode(PROMPT)

    def step(engine: Engine, params: GenerationParams, scorer: NgramScorer[Any] | None = None) -> float:
        engine.forget_prompts()  # else the drafts of the last time take no row
        output = engine.generate(PROMPT, params, scorer)
        return output.timings.decode_ms / output.usage.forward_rows

    def request(params: GenerationParams, scorer: NgramScorer[Any] | None = None) -> float:
        int4.forget_prompts()
        return _ms(lambda: int4.generate(PROMPT, params, scorer))

    return {
        "greedy": lambda: step(int4, greedy),
        "superposed 3": lambda: step(int4, three, scorer),
        "superposed 8": lambda: step(int4, eight, scorer),
        "greedy bfloat16": lambda: step(bfloat16, greedy),
        **_forwards(bfloat16, prompt_ids),
        "request superposed": lambda: request(three, scorer),
        "request sample": lambda: request(sampled),
        "generate": lambda: _ms(lambda: generate(PROMPT, prompt_ids)),
        **_key_presses(int4, scorer),
    }


def _forwards(engine: Engine, prompt_ids: list[int]) -> Timed:
    """The forward pass of a decode step over the same slot, fused and as in transformers."""
    runner = engine._runner
    assert isinstance(runner, TorchRunner)
    fused = runner._fused
    embeddings = runner.embed(prompt_ids[-1:])
    lengths = range(len(prompt_ids), len(prompt_ids) + TOKENS_PER_RUN)

    def run(forward: FusedDecoder | None) -> float:
        runner._fused = forward
        try:
            runner.prefill([0], [prompt_ids], [0])
            return _ms(lambda: [runner.decode(embeddings, [length]) for length in lengths])
        finally:
            runner._fused = fused

    return {"fused": lambda: run(fused), "plain": lambda: run(None)}


def _key_presses(engine: Engine, scorer: NgramScorer[Any] | None) -> Timed:
    """A key press at the end of a text, with the text before the key press cached and without."""
    params = GenerationParams(num_drafts=3, max_tokens=KEY_PRESS_TOKENS, token_healing=True)
    numbers = itertools.count()

    def press(is_warm: bool) -> float:
        text = f"{next(numbers)}. {TEXTS[0][:KEY_PRESS_CHARS]}"
        if is_warm:
            engine.generate(text[:-1], params, scorer)
        return _ms(lambda: engine.generate(text, params, scorer))

    return {"warm key": lambda: press(True), "cold key": lambda: press(False)}


def _ms(run: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    run()
    return (time.perf_counter() - started_s) * 1000


def _told(row: dict[str, Any]) -> str:
    allowed = row["recorded"] * (1 + row["tolerance"])
    return (
        f"REGRESSION: {row['name']} is {row['ratio']['median']:.3f}, recorded {row['recorded']:.3f}, "
        f"allowed {allowed:.3f} ({row['tolerance']:.0%} more)."
    )


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("ratio of times, smaller is better", "now", "25-75 % of rounds", "recorded", "allowed", "")
    for row in rows:
        recorded = row.get("recorded")
        cells = ("", "") if recorded is None else (f"{recorded:.3f}", f"{recorded * (1 + row['tolerance']):.3f}")
        table.add_row(row["name"], *shown(row["ratio"], 3), *cells, "REGRESSION" if row["regressed"] else "")
    return table
