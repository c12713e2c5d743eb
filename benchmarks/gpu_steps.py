"""What one request waits for on a GPU: decode steps of one row, and the drafts after a key press."""

import itertools
import random
import statistics
import time
from typing import Any

from superdraft.benchmarks.gpu_models import (
    MHA_MODEL,
    Scorer,
    Workbench,
    make_engine,
    position_bytes,
    step_weight_bytes,
)
from superdraft.benchmarks.gpu_timing import Findings, Roofline, synchronise
from superdraft.benchmarks.summary import percentile, ratio, spread
from superdraft.benchmarks.typing_texts import TEXTS
from superdraft.decoding.engine import Engine
from superdraft.decoding.kv_cache import probe_layer_shapes
from superdraft.decoding.params import GenerationParams

WARM_UP_RUNS = 2
KEY_PRESS_TOKENS = 8
KEY_WARM_UP = 5
_NUM_SLOTS = 4

GREEDY = GenerationParams(num_drafts=1, alpha=0, max_tokens=32)


def steps_engine(bench: Workbench, context: int, **settings: Any) -> Engine:
    """The engine of this file's parts: a few slots, and room for two prompts that come again."""
    max_len = context + 64
    return bench.engine(MHA_MODEL, max_len=max_len, num_slots=_NUM_SLOTS, pool=2 * max_len, **settings)


def token_prompt(length: int, vocab_size: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    chance = random.Random(seed)  # noqa: S311 (not for secrets)
    return [chance.randrange(vocab_size) for _ in range(length)]


def decode_ms(engine: Engine, prompt: list[int], params: GenerationParams, scorer: Scorer | None = None) -> float:
    """Milliseconds a decode step of one request that has the engine to itself.

    From the prompt's pass, which gives first tokens that the host knows, to the answer. An engine that starts steps
    ahead of the host has none under way at the end, as at the beginning.

    Args:
        engine: with nothing else to do.
        prompt: one that it does not know: the last token of a known one would be run in a decode step.
        params: what is wanted.
        scorer: the n-gram model.
    """
    engine.add_request("timed", prompt, params, scorer)
    started_s = 0.0
    while True:
        outputs = engine.step()
        now_s = time.perf_counter()
        if engine.last_step.kind == "prefill":
            started_s = now_s
        for step_output in outputs:
            if step_output.error is not None:
                raise step_output.error
            if step_output.output is not None:
                return 1000 * (now_s - started_s) / step_output.output.usage.forward_rows


def time_single_row(bench: Workbench, roofline: Roofline, context: int, runs: int, **settings: Any) -> Findings:
    """A greedy decode step of one row, and what share it is of the time that reading the weights alone would take.

    Args:
        bench: has the model.
        roofline: of the card.
        context: positions before the new one, half-way through the timed steps.
        runs: timed requests.
        settings: of the engine.
    """
    engine = steps_engine(bench, context, **settings)
    model = bench.model(MHA_MODEL)
    prompt = token_prompt(context - GREEDY.max_tokens // 2 - 1, engine._runner.vocab_size)
    step_ms = [decode_ms(engine, [number, *prompt], GREEDY) for number in range(runs + WARM_UP_RUNS)][WARM_UP_RUNS:]
    weights = step_weight_bytes(model)
    cached = context * position_bytes(probe_layer_shapes(model))
    weights_ms = 1000 * weights / roofline.copy_bytes_per_s
    with_cache_ms = 1000 * (weights + cached) / roofline.copy_bytes_per_s
    median_ms = statistics.median(step_ms)
    row = {
        "what": "greedy step of one row",
        "ms": spread(step_ms, digits=3),
        "of weights": round(weights_ms / median_ms, 3),
        "of weights and cache": round(with_cache_ms / median_ms, 3),
    }
    notes = [
        f"Weights read in a step, in 16 bits: {weights / 1e9:.3f} GB (all but the embedding table), {weights_ms:.3f} "
        f"ms at the copy's {roofline.copy_bytes_per_s / 1e12:.3f} TB/s; keys and values of {context} positions: "
        f"{cached / 1e9:.3f} GB.",
        "of weights: that time divided by the step's, which is the whole of the engine's: the choice of the token, its "
        "way to the host and a part of the answer are in it.",
    ]
    return Findings([row], notes)


def compare_steps(bench: Workbench, context: int, runs: int) -> Findings:
    """Superposed steps beside greedy ones, every variant of the n-gram model's place, in turns.

    Args:
        bench: has the model and the n-gram model.
        context: as in `time_single_row`.
        runs: timed rounds.
    """
    engine = steps_engine(bench, context)
    max_tokens = GREEDY.max_tokens
    prompt = token_prompt(context - max_tokens // 2 - 1, engine._runner.vocab_size)
    firsts = itertools.count()
    places = {"device": engine, "host": _engine_without_tables(bench, engine)}
    variants: dict[str, tuple[Engine, GenerationParams, Scorer | None]] = {"greedy": (engine, GREEDY, None)}
    for k in (3, 8):
        without = GenerationParams(num_drafts=k, alpha=0, max_tokens=max_tokens)
        variants[f"superposed k={k}, no n-gram"] = (engine, without, None)
        if bench.scorer is not None:
            params = GenerationParams(num_drafts=k, max_tokens=max_tokens)
            for place, used in places.items():
                variants[f"superposed k={k}, n-gram on the {place}"] = (used, params, bench.scorer)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(runs + WARM_UP_RUNS):
        for name, (used, params, scorer) in variants.items():
            took = decode_ms(used, [next(firsts), *prompt], params, scorer)
            if number >= WARM_UP_RUNS:
                times[name].append(took)
    greedy = times["greedy"]
    rows = [
        {
            "decoder": name,
            "ms": spread(taken, digits=3),
            "ratio of medians": round(statistics.median(taken) / statistics.median(greedy), 3),
            "ratio to greedy": ratio(taken, greedy),
        }
        for name, taken in times.items()
    ]
    note = "ratio to greedy: round by round. Drafts of random weights are n-grams that the model mostly lacks."
    return Findings(rows, [note])


def _engine_without_tables(bench: Workbench, like: Engine) -> Engine:
    return make_engine(
        bench.model(MHA_MODEL),
        max_model_len=like.max_model_len,
        num_slots=_NUM_SLOTS,
        kv_memory_bytes=like.kv_bytes_per_position * (_NUM_SLOTS + 2) * like.max_model_len,
    )


def time_key_presses(bench: Workbench, context: int, keys: int) -> Findings:
    """From a key press to its drafts, in one session whose text grows by a character at a time.

    Args:
        bench: has the model and the n-gram model.
        context: tokens of the text, about.
        keys: timed key presses of each kind.
    """
    engine = steps_engine(bench, context)
    superposed = GenerationParams(num_drafts=3, max_tokens=KEY_PRESS_TOKENS)
    healed = GenerationParams(num_drafts=3, max_tokens=KEY_PRESS_TOKENS, token_healing=True)
    distinct = GenerationParams(
        num_drafts=3,
        max_tokens=KEY_PRESS_TOKENS,
        token_healing=True,
        selection="distinct",
        max_branches=3,
        alpha=0,
        tau=1,
    )
    kinds = {"superposed": superposed, "superposed, token healing": healed, "distinct, token healing": distinct}
    rows = [_key_press_row(bench, engine, name, params, context, keys) for name, params in kinds.items()]
    return Findings(
        rows,
        [
            f"k = 3, {KEY_PRESS_TOKENS} tokens, one session, from adding the request to its answer, without HTTP; all "
            "but the first keys find the text before in the engine's cache.",
            "With token healing a model of random weights repeats a typed word in more steps than a trained one.",
        ],
    )


def _key_press_row(
    bench: Workbench, engine: Engine, name: str, params: GenerationParams, context: int, keys: int
) -> dict[str, Any]:
    text = long_text(engine, context - keys // 2)
    typed = " ".join(TEXTS)[: keys + KEY_WARM_UP]
    times, decode_steps, prefilled = [], [], []
    for number in range(len(typed)):
        synchronise(bench.device)
        started_s = time.perf_counter()
        engine.add_request(str(number), text + typed[: number + 1], params, bench.scorer, session_id="typist")
        num_steps, output = 0, None
        while output is None:
            for step_output in engine.step():
                if step_output.error is not None:
                    raise step_output.error
                output = step_output.output
            num_steps += engine.last_step.kind == "decode" and not engine.last_step.first_draft_s
        if number >= KEY_WARM_UP:
            times.append(1000 * (time.perf_counter() - started_s))
            decode_steps.append(num_steps)
            prefilled.append(output.usage.prompt_tokens - output.usage.cached_tokens)
    return {
        "drafts": name,
        "p50 ms": round(percentile(times, 50), 2),
        "p95 ms": round(percentile(times, 95), 2),
        "keys": len(times),
        "decode steps": round(statistics.fmean(decode_steps), 2),
        "prompt tokens run": round(statistics.fmean(prefilled), 2),
    }


def long_text(engine: Engine, num_tokens: int) -> str:
    """A text of at most so many tokens, repeated where there is not enough."""
    text, encode = " ".join(TEXTS), engine.tokenizer.encode
    while len(encode(text)) < num_tokens:
        text += " " + text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(encode(text[:middle])) <= num_tokens else (low, middle - 1)
    return text[:low]
