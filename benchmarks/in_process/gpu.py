"""Time of decode steps on a GPU, and the share of it that the host takes to choose tokens.

Nothing is fetched: weights are random bfloat16 numbers made on the device. The time of a step does not depend on them.
`--device cpu --shapes tiny` tries the code out.
"""

import functools
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import tokenizers
import torch
import transformers
import typer
from rich.table import Table
from tokenizers import decoders, pre_tokenizers

from superdraft.benchmarks.options import AsJson
from superdraft.benchmarks.summary import make_report, print_report, ratio, shown, spread
from superdraft.decoding.build import build_engine
from superdraft.decoding.config import EngineConfig
from superdraft.decoding.engine.engine import Engine
from superdraft.decoding.loading.loader import LoadedModel
from superdraft.decoding.model.kv_cache import cells_per_slot
from superdraft.decoding.model.torch_runner import TorchRunner
from superdraft.decoding.ngram import NgramScorer
from superdraft.decoding.params import GenerationParams
from superdraft.decoding.request import EngineRequest
from superdraft.ngram_models.store.manifest import Manifest
from superdraft.ngram_models.store.registry import find_ngram_model, open_scorer
from superdraft.server.errors import CommandError

NGRAM_MODEL = "smollm2-135m"  # its words are token ids, of whatever vocabulary
_WARM_UP = 3

NOTES = (
    "steps: the forward pass of a decode step, from the host's call until the device has finished. of weights: the "
    "time to read the weights once, at the rate of a large copy, divided by the step's time. of weights and cache: the "
    "same with all keys and values that the step reads.",
    "decoders: whole engine steps of a single request. ratio: to greedy, round by round.",
    "choice: whole engine steps with several requests, k = 3 and the n-gram model. choice ms is the time of a step "
    "without its forward pass.",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a Llama model."""

    num_layers: int
    width: int
    mlp_width: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes to measure.

    Attributes:
        models: shapes by name; whole engine steps are timed with the first one.
        rows: numbers of rows per step.
        contexts: numbers of cached positions.
        requests: numbers of concurrent requests.
        repeats: timed steps of each kind.
        max_tokens: new tokens of a timed request.
        copy_bytes: size of the copy that measures the bandwidth.
    """

    models: dict[str, Shape]
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    requests: tuple[int, ...]
    repeats: int
    max_tokens: int
    copy_bytes: int


SIZES = {
    "full": Sizes(
        models={
            "7B, 32 key heads": Shape(32, 4096, 11008, 32, 32, 32000),
            "8B, 8 key heads": Shape(32, 4096, 14336, 32, 8, 128256),
        },
        rows=(1, 3, 8, 24, 64),
        contexts=(128, 1024),
        requests=(1, 16, 64),
        repeats=30,
        max_tokens=16,
        copy_bytes=4 << 30,
    ),
    "tiny": Sizes(
        models={"4 key heads": Shape(2, 64, 96, 4, 4, 600), "2 key heads": Shape(2, 64, 96, 8, 2, 700)},
        rows=(1, 3),
        contexts=(16,),
        requests=(1, 4),
        repeats=2,
        max_tokens=4,
        copy_bytes=1 << 16,
    ),
}


def main(
    device: Annotated[str, typer.Option(help="Device: cuda, cuda:N or cpu.")] = "cuda",
    shapes: Annotated[str, typer.Option(help="Sizes: full, or tiny to try the code out on a CPU.")] = "full",
    as_json: AsJson = False,
) -> None:
    """Time decode steps on a GPU: by rows and positions, superposed and greedy, and the host's choice of tokens."""
    if shapes not in SIZES:
        raise CommandError(f"--shapes must be one of {', '.join(SIZES)}, got {shapes!r}.")
    if device == "cpu" and shapes != "tiny":
        raise CommandError("A CPU is only measured with the tiny shapes: add --shapes tiny.")
    if device != "cpu" and not torch.cuda.is_available():
        raise CommandError("torch sees no GPU here. --device cpu --shapes tiny tries the code out.")
    sizes, place = SIZES[shapes], torch.device(device)
    tables = measure(place, sizes)
    settings = {"device": device, "shapes": shapes, "ngram_model": NGRAM_MODEL, "sizes": asdict(sizes)}
    report = make_report(__doc__, settings, **tables)
    notes = [*NOTES, "On a CPU this only tries the code out: do not quote these figures."] if device == "cpu" else NOTES
    print_report(report, [_table(title, rows) for title, rows in tables.items()], as_json, notes)


def measure(device: torch.device, sizes: Sizes) -> dict[str, list[dict[str, Any]]]:
    """The rows of each table, by its title."""
    bytes_per_s = copy_rate(device, sizes)
    folder = find_ngram_model(NGRAM_MODEL)
    scorer = open_scorer(folder, Manifest.read(folder))
    tables: dict[str, list[dict[str, Any]]] = {"steps": [], "decoders": [], "choice": []}
    for name, shape in sizes.models.items():
        model = make_model(shape, device)
        engine = make_engine(model, sizes)
        tables["steps"] += [{"model": name, **row} for row in time_steps(engine, sizes, bytes_per_s)]
        if not tables["decoders"]:
            tables["decoders"] = compare_decoders(engine, sizes, scorer)
            tables["choice"] = time_choice(engine, sizes, scorer)
        del model, engine  # two models with their caches might not fit
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return tables


def copy_rate(device: torch.device, sizes: Sizes) -> float:
    """Bytes read and written per second by large copies within the device's memory."""
    source = torch.ones(sizes.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = _times_s(device, lambda: target.copy_(source), sizes.repeats)
    return 2 * sizes.copy_bytes / statistics.median(times)


def time_steps(engine: Engine, sizes: Sizes, bytes_per_s: float) -> Iterator[dict[str, Any]]:
    """Time decode steps of the model runner, by rows and positions."""
    runner = engine._runner
    assert isinstance(runner, TorchRunner)
    weights = step_weight_bytes(runner.model)
    for context in sizes.contexts:
        for num_rows in sizes.rows:
            embeddings, lengths = runner.embed(list(range(num_rows))), [context] * num_rows
            step = functools.partial(runner.decode, embeddings, lengths)
            times = _times_s(runner.device, step, sizes.repeats)
            median_s = statistics.median(times)
            cached = engine.kv_bytes_per_position * context * num_rows
            yield {
                "rows": num_rows,
                "context": context,
                "ms": spread([1000 * seconds for seconds in times], digits=3),
                "of weights": _three_digits(weights / bytes_per_s / median_s),
                "of weights and cache": _three_digits((weights + cached) / bytes_per_s / median_s),
            }


def compare_decoders(engine: Engine, sizes: Sizes, scorer: NgramScorer[Any]) -> list[dict[str, Any]]:
    """Time superposed and greedy steps in turns, each with a single request in the engine."""
    num = sizes.max_tokens
    variants: dict[str, tuple[GenerationParams, NgramScorer[Any] | None]] = {
        "greedy": (GenerationParams(num_drafts=1, alpha=0, max_tokens=num), None)
    }
    for k in (3, 8):
        variants[f"superposed k={k}"] = (GenerationParams(num_drafts=k, alpha=0, max_tokens=num), None)
        variants[f"superposed k={k}, n-gram model"] = (GenerationParams(num_drafts=k, max_tokens=num), scorer)
    times: dict[str, list[float]] = {name: [] for name in variants}
    prompts = _prompts(engine, max(sizes.contexts) - num)
    for number in range(_WARM_UP + sizes.repeats):
        for name, (params, used) in variants.items():
            output = engine.generate(next(prompts), params, used)
            if number >= _WARM_UP:
                times[name].append(output.timings.decode_ms / output.usage.forward_rows)
    return [
        {"decoder": name, "ms": spread(taken, digits=3), "ratio": ratio(taken, times["greedy"])}
        for name, taken in times.items()
    ]


def time_choice(engine: Engine, sizes: Sizes, scorer: NgramScorer[Any]) -> list[dict[str, Any]]:
    """Time the host's part of a step, by the number of concurrent requests."""
    runner, forward_s = engine._runner, [0.0]
    forward = runner.forward
    params = GenerationParams(num_drafts=3, max_tokens=sizes.max_tokens)
    prompts = _prompts(engine, min(sizes.contexts) - sizes.max_tokens)

    def timed(*args: Any) -> torch.Tensor:
        forward_s[0] = _seconds_of(runner.device, lambda: logits.append(forward(*args)))
        return logits.pop()

    logits: list[torch.Tensor] = []
    rows = []
    for num_requests in sizes.requests:
        steps, choices = [], []
        with mock.patch.object(runner, "forward", timed):
            for _ in range(1 + sizes.repeats // 10):
                for number in range(num_requests):
                    engine.add_request(EngineRequest(str(number), next(prompts), params, scorer))
                while engine.has_unfinished:
                    outputs = engine.step()
                    last, is_whole = engine.last_step, engine.num_waiting == 0 and not outputs
                    # Steps that begin or end requests do more work, and run fewer requests.
                    if last.kind == "decode" and is_whole and engine.num_running == num_requests:
                        steps.append(1000 * last.seconds)
                        choices.append(1000 * (last.seconds - forward_s[0]))
        rows.append(
            {
                "requests": num_requests,
                "step ms": spread(steps, digits=3),
                "choice ms": spread(choices, digits=3),
                "share": round(statistics.median(choices) / statistics.median(steps), 3),
            }
        )
    return rows


def make_model(shape: Shape, device: torch.device) -> transformers.PreTrainedModel:
    """A Llama model of this shape with random weights and no end-of-text token, made on its device."""
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=None,
        pad_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.requires_grad_(False).eval()


def make_tokenizer(vocab_size: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of single bytes and made-up words."""
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    words += [f"Ġ~{number}" for number in range(len(words), vocab_size)]
    vocabulary = {word: number for number, word in enumerate(words)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made)


def make_engine(model: transformers.PreTrainedModel, sizes: Sizes) -> Engine:
    """An engine with a slot per row and request."""
    num_slots, max_len = max(*sizes.rows, *sizes.requests), max(sizes.contexts) + 1
    config = model.config
    position_bytes = 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    loaded = LoadedModel(model, make_tokenizer(config.vocab_size), "random weights", Path())
    memory = num_slots * cells_per_slot(max_len) * position_bytes
    settings = {"max_model_len": max_len, "kv_memory_bytes": memory, "num_slots": num_slots}
    return build_engine(loaded, EngineConfig(**settings, max_prefill_tokens=8192))


def step_weight_bytes(model: transformers.PreTrainedModel) -> int:
    """Bytes of weights that a decode step reads: all except the embedding table, of which it reads only k rows."""
    embedding = model.get_input_embeddings().weight
    return int(sum(weight.nbytes for weight in model.parameters()) - embedding.nbytes)


def _three_digits(share: float) -> float:
    return float(f"{share:.3g}")


def _prompts(engine: Engine, length: int) -> Iterator[list[int]]:
    chance = random.Random(0)  # noqa: S311 (not for secrets)
    while True:
        yield [chance.randrange(engine.tokenizer.vocab_size) for _ in range(length)]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds_of(device: torch.device, run: Callable[[], object]) -> float:
    """The time of `run`, including all work that it starts on the device."""
    _synchronise(device)
    started_s = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - started_s


def _times_s(device: torch.device, run: Callable[[], object], repeats: int) -> list[float]:
    return [_seconds_of(device, run) for _ in range(_WARM_UP + repeats)][_WARM_UP:]


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(" (".join(shown(v, 3)) + ")" if isinstance(v, dict) else str(v) for v in row.values()))
    return table
