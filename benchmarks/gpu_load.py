"""What many requests at once cost on a GPU: requests a second, and how many fit in the memory for keys and values."""

import itertools
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from superdraft.benchmarks.gpu_models import GQA_MODEL, NUM_SCRATCH, Scorer, Workbench
from superdraft.benchmarks.gpu_steps import token_prompt
from superdraft.benchmarks.gpu_timing import Findings, synchronise
from superdraft.benchmarks.summary import ratio, spread
from superdraft.decoding.engine import Engine
from superdraft.decoding.errors import ModelLoadError
from superdraft.decoding.kv_cache import LayerShape, plan_cache, probe_layer_shapes
from superdraft.decoding.outputs import GenerationOutput
from superdraft.decoding.params import GenerationParams

NUM_DRAFTS = 3
MAX_TOKENS = 10
MAX_PREFILL_TOKENS = 8192
"""Between two decode steps, as a server on a GPU would be set: many prompts, or all of a long one, in one pass."""

STRATEGIES = {
    "superposed": GenerationParams(num_drafts=NUM_DRAFTS, max_tokens=MAX_TOKENS),
    "sample": GenerationParams(num_drafts=NUM_DRAFTS, strategy="sample", top_p=0.9, seed=1, max_tokens=MAX_TOKENS),
    "distinct": GenerationParams(
        num_drafts=NUM_DRAFTS, selection="distinct", max_branches=NUM_DRAFTS, alpha=0, tau=1, max_tokens=MAX_TOKENS
    ),
}
_MAX_KEYS = 96
"""How much longer than at the start a prompt may get."""

_CROWD_TOKENS = 4 * MAX_TOKENS
"""Enough that nobody of a crowd is through before the last one has begun."""


@dataclass(frozen=True, slots=True)
class Load:
    """The sizes of the load.

    Attributes:
        context: tokens of a prompt.
        in_flight: requests at any time.
        turns: timed turns of every strategy.
        rounds: answers to each client in a turn.
        kv_budget_bytes: of the capacity.
        verified_share: the capacity is tried with this share of the budget.
    """

    context: int
    in_flight: int
    turns: int
    rounds: int
    kv_budget_bytes: int
    verified_share: float

    @property
    def max_len(self) -> int:
        """Positions of a slot: the longest prompt and its drafts."""
        return self.context + _MAX_KEYS + MAX_TOKENS


def load_engine(bench: Workbench, load: Load) -> Engine:
    """An engine with a row for every draft, and a place in its pool for every client's text."""
    return bench.engine(
        GQA_MODEL,
        max_len=load.max_len,
        num_slots=NUM_DRAFTS * load.in_flight,
        pool=load.in_flight * (load.max_len + MAX_TOKENS),
        max_prefill_tokens=MAX_PREFILL_TOKENS,
    )


class Clients:
    """Clients who each type a text and ask again, a token further, when they are answered.

    Args:
        count: of them.
        length: tokens of a text when its client begins.
        vocab_size: of the model.
    """

    def __init__(self, count: int, length: int, vocab_size: int) -> None:
        self._texts = [token_prompt(length + _MAX_KEYS, vocab_size, seed=client) for client in range(count)]
        self._lengths = [iter(range(length, length + _MAX_KEYS)) for _ in range(count)]

    def __len__(self) -> int:
        return len(self._texts)

    def next_prompt(self, client: int) -> list[int]:
        """What the client asks for now."""
        return self._texts[client][: next(self._lengths[client])]


def time_load(bench: Workbench, load: Load) -> Findings:
    """Requests a second with each strategy, in turns, the prefixes of all prompts being known from the key before."""
    engine = load_engine(bench, load)
    keys = (load.turns + 1) * load.rounds * len(STRATEGIES)
    assert keys <= _MAX_KEYS
    clients = Clients(load.in_flight, load.context - keys // 2, engine._runner.vocab_size)
    rates: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    usages: dict[str, list[GenerationOutput]] = {name: [] for name in STRATEGIES}
    for turn in range(load.turns + 1):
        for name, params in STRATEGIES.items():
            outputs, took_s = ask_and_ask_again(engine, clients, params, bench.scorer, load.rounds)
            if turn:  # the first one finds no prefixes, and memory that was never touched
                rates[name].append(len(outputs) / took_s)
                usages[name] += outputs
    rows = [
        {
            "strategy": name,
            "requests/s": spread(found),
            "sample's part": ratio(found, rates["sample"]),
            "rows a request": round(statistics.fmean(output.usage.forward_rows for output in usages[name]), 2),
            "prompt tokens run": round(
                statistics.fmean(output.usage.prompt_tokens - output.usage.cached_tokens for output in usages[name]), 2
            ),
        }
        for name, found in rates.items()
    ]
    return Findings(
        rows,
        [
            f"{load.in_flight} requests in flight, k = {NUM_DRAFTS}, {MAX_TOKENS} tokens, prompts of {load.context} "
            f"tokens that grow by one from request to request; {NUM_DRAFTS * load.in_flight} slots for all strategies.",
            "sample's part: requests/s divided by those of sample, turn by turn. No draft ends early.",
        ],
    )


def ask_and_ask_again(
    engine: Engine, clients: Clients, params: GenerationParams, scorer: Scorer | None, rounds: int
) -> tuple[list[GenerationOutput], float]:
    """A closed loop: every client asks again when it is answered, `rounds` times, and all stop together.

    Returns:
        The answers, and the seconds that they took.
    """
    device = engine._runner.device
    numbers = itertools.count()

    def ask(client: int) -> None:
        number = next(numbers)
        seeded = params if params.seed is None else replace(params, seed=number)
        engine.add_request(f"{client} {number}", clients.next_prompt(client), seeded, scorer)

    synchronise(device)
    started_s = time.perf_counter()
    left = [rounds] * len(clients)
    for client in range(len(clients)):
        ask(client)
    outputs = []
    for client, output in _answers(engine):
        outputs.append(output)
        left[client] -= 1
        if left[client]:
            ask(client)
    synchronise(device)
    return outputs, time.perf_counter() - started_s


def _answers(engine: Engine) -> Iterator[tuple[int, GenerationOutput]]:
    while engine.has_unfinished:
        for step_output in engine.step():
            if step_output.error is not None:
                raise step_output.error
            if step_output.output is not None:
                yield int(step_output.request_id.partition(" ")[0]), step_output.output


def time_new_prompts(
    engine: Engine, prompts: list[list[int]], params: GenerationParams, scorer: Scorer | None
) -> float:
    """Seconds until all of these prompts, which nobody asked before, are answered."""
    synchronise(engine._runner.device)
    started_s = time.perf_counter()
    for client, prompt in enumerate(prompts):
        engine.add_request(str(client), prompt, params, scorer)
    num_answers = sum(1 for _ in _answers(engine))
    synchronise(engine._runner.device)
    assert num_answers == len(prompts)
    return time.perf_counter() - started_s


def new_prompts(load: Load, vocab_size: int, first_seed: int) -> list[list[int]]:
    """As many prompts as there are requests in flight."""
    return [token_prompt(load.context, vocab_size, first_seed + client) for client in range(load.in_flight)]


def find_capacity(bench: Workbench, load: Load) -> Findings:
    """How many requests fit into the budget for keys and values, by the cache's plan and by trying.

    Every slot of an engine has the same number of positions, so what fits is a matter of rows. What the plan says is
    tried with a share of the budget: so many requests must run at once, and one more must wait.
    """
    max_len = load.context + MAX_TOKENS
    shapes = probe_layer_shapes(bench.model(GQA_MODEL))
    shared = int(load.kv_budget_bytes * load.verified_share)
    slots = most_slots(shapes, load.kv_budget_bytes, max_len)
    tried_slots = most_slots(shapes, shared, max_len)
    bench.release_engine()
    engine = bench.engine(GQA_MODEL, max_len=max_len, num_slots=tried_slots, pool=0)
    rows = []
    for name, params in STRATEGIES.items():
        expected = tried_slots // params.num_rows
        at_once = most_at_once(engine, replace(params, max_tokens=_CROWD_TOKENS), expected + 1, bench.scorer)
        rows.append(
            {
                "strategy": name,
                "rows a request": params.num_rows,
                "in flight": slots // params.num_rows,
                "tried": expected,
                "at once": at_once,
                "holds": at_once == expected,
            }
        )
    bench.release_engine()
    return Findings(
        rows,
        [
            f"{load.kv_budget_bytes / 1e9:.1f} GB for keys and values hold {slots} slots of {max_len} positions; "
            f"tried with {shared / 1e9:.2f} GB, {tried_slots} slots, and one request more than fits.",
        ],
        passed=all(row["holds"] for row in rows),
    )


def most_slots(shapes: list[LayerShape], memory_bytes: int, max_len: int) -> int:
    """The largest number of slots that the cache's plan accepts; numbers are of 16 bits."""

    def fits(num_slots: int) -> bool:
        try:
            plan_cache(shapes, 2, memory_bytes, max_len, num_slots, NUM_SCRATCH)
        except ModelLoadError:
            return False
        return True

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def most_at_once(engine: Engine, params: GenerationParams, num_requests: int, scorer: Scorer | None) -> int:
    """How many of these requests run at the same time while the others wait; they are cancelled then."""
    chance = random.Random(3)  # noqa: S311 (not for secrets)
    for number in range(num_requests):
        prompt = [chance.randrange(engine._runner.vocab_size) for _ in range(8)]
        engine.add_request(f"{number} crowd", prompt, params, scorer)
    most = 0
    for _ in range(params.max_tokens):
        engine.step()
        if not engine.has_unfinished:
            break
        most = max(most, engine.num_running)
    for number in range(num_requests):
        engine.cancel(f"{number} crowd")
    return most
