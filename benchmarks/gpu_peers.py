"""What transformers does with the same model and prompts: `generate`, and its continuous batching.

Prompts are new in every round, since `generate` keeps nothing for the next one: ours run their whole prompts too.
"""

import inspect
import statistics
import threading
from collections.abc import Callable
from typing import Any

import torch
import transformers

from superdraft.benchmarks.gpu_load import (
    MAX_PREFILL_TOKENS,
    MAX_TOKENS,
    NUM_DRAFTS,
    STRATEGIES,
    Load,
    new_prompts,
    time_new_prompts,
)
from superdraft.benchmarks.gpu_models import GQA_MODEL, Workbench, free_memory
from superdraft.benchmarks.gpu_timing import Findings, seconds_of
from superdraft.benchmarks.summary import spread
from superdraft.decoding.quiet import quiet_transformers

ROUNDS = 3
BATCHING_LIMIT_S = 120.0
_TOP_P = 0.9

Prompts = list[list[int]]


class HungError(RuntimeError):
    """Something that cannot be ended still runs; this process is of no use for timing any more."""


def time_generate(bench: Workbench, load: Load) -> Findings:
    """Ours, superposed, beside transformers' `generate` of as many samples of each prompt, in one batch if it fits."""
    ours = time_ours(bench, load)
    bench.release_engine()
    model = bench.model(GQA_MODEL)
    chunk = _largest_chunk(model, _prompts(load, model, -1))
    theirs = []
    for number in range(ROUNDS):
        prompts = _prompts(load, model, number)
        theirs.append(seconds_of(bench.device, lambda prompts=prompts: _generate(model, prompts, chunk)))  # type: ignore[misc]
    note = (
        f"generate: batches of {chunk} prompts x {NUM_DRAFTS}, nucleus of {_TOP_P}, {MAX_TOKENS} tokens in every draft"
    )
    return Findings([_row("superdraft, superposed", load, ours, ours), _row("generate", load, theirs, ours)], [note])


def time_batching(bench: Workbench, load: Load, limit_s: float = BATCHING_LIMIT_S) -> Findings:
    """Ours, superposed, beside transformers' continuous batching.

    Raises:
        HungError: it took longer than `limit_s`.
    """
    ours = time_ours(bench, load)
    bench.release_engine()
    model = bench.model(GQA_MODEL)
    theirs: list[float] = []
    try:
        _within(limit_s, lambda: theirs.extend(_batching_rounds(model, load)))
    finally:
        bench.release()  # it leaves its own kind of attention in the model
    note = f"continuous batching: one manager for all rounds, num_return_sequences = {NUM_DRAFTS}, its own defaults"
    return Findings(
        [_row("superdraft, superposed", load, ours, ours), _row("continuous batching", load, theirs, ours)], [note]
    )


def time_ours(bench: Workbench, load: Load) -> list[float]:
    """Seconds for as many new prompts as there are requests in flight, superposed, round by round."""
    engine = bench.engine(
        GQA_MODEL,
        max_len=load.context + MAX_TOKENS,
        num_slots=load.in_flight,
        pool=0,
        max_prefill_tokens=MAX_PREFILL_TOKENS,
    )
    times = []
    for number in range(-1, ROUNDS):
        prompts = _prompts(load, bench.model(GQA_MODEL), number)
        took_s = time_new_prompts(engine, prompts, STRATEGIES["superposed"], bench.scorer)
        if number >= 0:
            times.append(took_s)
    return times


def _row(name: str, load: Load, seconds: list[float], ours: list[float]) -> dict[str, Any]:
    return {
        "contender": name,
        "s for all": spread(seconds, digits=3),
        "requests/s": round(load.in_flight / statistics.median(seconds), 2),
        "times ours": round(statistics.median(seconds) / statistics.median(ours), 2),
    }


def _prompts(load: Load, model: transformers.PreTrainedModel, number: int) -> Prompts:
    return new_prompts(load, model.config.vocab_size, 1000 * (number + 2))


def _largest_chunk(model: transformers.PreTrainedModel, prompts: Prompts) -> int:
    """The largest power of two, or all, of the prompts that `generate` has the memory for; warms up as well."""
    chunk = len(prompts)
    while True:
        try:
            _generate(model, prompts, chunk)
        except torch.OutOfMemoryError:
            if chunk == 1:
                raise
            chunk //= 2
        else:
            return chunk
        free_memory()


@torch.inference_mode()
def _generate(model: transformers.PreTrainedModel, prompts: Prompts, chunk: int) -> None:
    for start in range(0, len(prompts), chunk):
        ids = torch.tensor(prompts[start : start + chunk], device=model.device)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_p=_TOP_P,
            top_k=0,
            num_return_sequences=NUM_DRAFTS,
            max_new_tokens=MAX_TOKENS,
            pad_token_id=0,
        )
        assert output.shape == (NUM_DRAFTS * ids.shape[0], ids.shape[1] + MAX_TOKENS)


def _batching_rounds(model: transformers.PreTrainedModel, load: Load) -> list[float]:
    """Seconds of each round but the first, which plans memory and records graphs.

    Raises:
        RuntimeError: it cannot be had, or not every draft came back with all its tokens.
    """
    open_manager: Callable[..., Any] | None = getattr(model, "continuous_batching_context_manager", None)
    if open_manager is None:
        raise RuntimeError(f"transformers {transformers.__version__} has no continuous batching.")
    config = transformers.GenerationConfig(
        do_sample=True,
        top_p=_TOP_P,
        top_k=0,
        num_return_sequences=NUM_DRAFTS,
        max_new_tokens=MAX_TOKENS,
        eos_token_id=-1,
        pad_token_id=0,
    )
    with quiet_transformers(), open_manager(generation_config=config, **_hints(open_manager, load)) as manager:
        prompts = [_prompts(load, model, number) for number in range(-1, ROUNDS)]
        times = [seconds_of(model.device, lambda asked=asked: _ask(manager, asked)) for asked in prompts]  # type: ignore[misc]
    return times[1:]


def _hints(open_manager: Callable[..., Any], load: Load) -> dict[str, Any]:
    """What `generate_batch` itself would say of the work to come, for versions that want to know."""
    if "workload_hints" not in inspect.signature(open_manager).parameters:
        return {}
    from transformers.generation.continuous_batching.utils import WorkloadHints

    return {"workload_hints": WorkloadHints(load.context, MAX_TOKENS, NUM_DRAFTS * load.in_flight)}


def _ask(manager: Any, prompts: Prompts) -> None:
    manager.add_requests(inputs=prompts, max_new_tokens=MAX_TOKENS)
    wanted = NUM_DRAFTS * len(prompts)
    num_whole = 0
    for _ in range(wanted):
        while (result := manager.get_result(timeout=1)) is None:
            if not manager.is_running():
                raise RuntimeError("Continuous batching ended by itself.")
        if result.error:
            raise RuntimeError(str(result.error)[:300])
        num_whole += len(result.generated_tokens) == MAX_TOKENS
    if num_whole != wanted:
        raise RuntimeError(f"Only {num_whole} of {wanted} drafts have all their tokens.")


def _within(limit_s: float, run: Callable[[], None]) -> None:
    """Run it in a thread that may be left behind.

    Raises:
        HungError: it is not through in time.
    """
    faults: list[BaseException] = []

    def body() -> None:
        try:
            run()
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise HungError(f"It was not through after {limit_s:.0f} s.")
    if faults:
        raise faults[0]
