"""`superdraft ngram distill`: build an n-gram model from samples of a language model."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from superdraft.ngram_models.building.build import BuildOptions, build_ngram_model
from superdraft.ngram_models.building.disk_space import check_disk_space
from superdraft.ngram_models.building.sampled_corpus import SampledCorpus, ShardShape, open_sampled_corpus
from superdraft.ngram_models.building.work_folder import refuse_to_replace_other_things
from superdraft.ngram_models.tools import find_tools
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
from superdraft.server.cli.ngrams.build_options import (
    DEFAULT_PRUNE,
    BackoffQuantizeBits,
    Licence,
    Memory,
    Order,
    Prune,
    QuantizeBits,
    Tools,
    build_progress,
    command_errors,
    show_built,
)
from superdraft.server.cli.settings_options import setting
from superdraft.server.errors import CommandError
from superdraft.server.ngrams.options import output_folder, prune_counts, tokenizer_identity

if TYPE_CHECKING:
    from superdraft.decoding.distillation.sampler import TextSampler
    from superdraft.decoding.loading.loader import LoadedModel
    from superdraft.decoding.text.tokenizer import Tokenizer

app = typer.Typer(
    help="Build an n-gram model from samples of a language model.", no_args_is_help=True, pretty_exceptions_enable=False
)

_CPU_BATCH, _GPU_BATCH = 64, 1024


Model = Annotated[str, typer.Argument(help="Language model to sample from, as in superdraft serve.")]
Output = Annotated[str, typer.Option("--output", "-o", help="Name of the n-gram model, or path of its folder.")]
Rows = Annotated[int, typer.Option(min=1, help="Number of rows to sample; a row holds one or more texts.")]
RowTokens = Annotated[int, typer.Option(min=2, help="Tokens per row; longer texts are cut off.")]
Batch = Annotated[
    int | None,
    typer.Option(min=1, help=f"Rows sampled together. If not set, {_CPU_BATCH} on a CPU and {_GPU_BATCH} on a GPU."),
]
Temperature = Annotated[float, typer.Option(min=0, max=2, help="Sampling temperature; 0 picks the most likely tokens.")]
TopP = Annotated[
    float, typer.Option(min=1e-6, max=1, help="Sample from the smallest set of tokens with this total probability.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed; the same seed samples the same rows.")]
Prompts = Annotated[
    Path | None, typer.Option(help="File of beginnings, one per line; each text starts with a random one.")
]
Dtype = Annotated[str, typer.Option(help="Data type of the weights: auto, float32, bfloat16 or float16.")]
Work = Annotated[
    Path | None, typer.Option(help="Folder to keep the samples in. If not set, they are removed after the build.")
]


@dataclass(frozen=True, slots=True)
class _Sampling:
    """What is sampled; `prompts` are token ids."""

    rows: int
    row_tokens: int
    temperature: float
    top_p: float
    seed: int
    prompts: Sequence[Sequence[int]]


@app.command()
def distill(
    model: Model,
    output: Output,
    rows: Rows = 131_072,
    row_tokens: RowTokens = 256,
    batch: Batch = None,
    temperature: Temperature = 1.0,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    prompts: Prompts = None,
    device: Annotated[str, setting("device")] = "auto",
    dtype: Dtype = "auto",
    work: Work = None,
    order: Order = 6,
    prune: Prune = DEFAULT_PRUNE,
    quantize_bits: QuantizeBits = 8,
    backoff_quantize_bits: BackoffQuantizeBits = 0,
    memory: Memory = "4G",
    tools: Tools = None,
    licence: Licence = "unknown",
) -> None:
    """Sample a corpus from a language model and build an n-gram model from it.

    An interrupted run continues where it stopped when it is started again with the same options.
    """
    with command_errors():
        options = BuildOptions(order, prune_counts(prune), quantize_bits or None, backoff_quantize_bits or None, memory)
        folder, programs = output_folder(output), find_tools(tools)
        refuse_to_replace_other_things(folder)
        check_disk_space(folder.parent, rows * row_tokens, order, options.prune)
        loaded, tokenizer = _load(model, device, dtype)
        beginnings = _read_prompts(prompts, tokenizer, row_tokens)
        sampling = _Sampling(rows, row_tokens, temperature, top_p, seed, beginnings)
        with _sampled(loaded, tokenizer, sampling, batch, work or folder.parent / f".{folder.name}.samples") as corpus:
            with build_progress("counting") as (_, progress):
                manifest = build_ngram_model(
                    corpus.read(rows),
                    folder,
                    tokenizer=tokenizer_identity(loaded.name, tokenizer),
                    tools=programs,
                    options=options,
                    description=f"{rows:,} samples of {row_tokens} tokens from {loaded.name} at temperature "
                    f"{temperature:g}, top-p {top_p:g}, seed {seed}" + (f", prompts {prompts.name}" if prompts else ""),
                    licence=licence,
                    progress=progress,
                )
            if work is None:
                corpus.remove()
        show_built(folder, manifest)


@contextmanager
def _sampled(
    loaded: "LoadedModel", tokenizer: "Tokenizer", sampling: _Sampling, batch: int | None, folder: Path
) -> Iterator[SampledCorpus]:
    """The corpus in a folder, with everything sampled that is missing there."""
    from superdraft.decoding.distillation.sampler import SamplerConfig, TextSampler, weights_fingerprint

    batch = min(sampling.rows, batch or (_CPU_BATCH if loaded.model.device.type == "cpu" else _GPU_BATCH))
    config = SamplerConfig(batch, sampling.row_tokens, sampling.temperature, sampling.top_p)
    settings = {
        "weights": weights_fingerprint(loaded.model),
        "dtype": str(loaded.model.dtype),
        "tokenizer": tokenizer_fingerprint(tokenizer.vocabulary),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "prompts": hashlib.sha256(json.dumps(sampling.prompts).encode()).hexdigest(),
        "seed": sampling.seed,
    }
    shape = ShardShape(batch, sampling.row_tokens, tokenizer_identity(loaded.name, tokenizer).vocabulary_size)
    with open_sampled_corpus(folder, settings, shape) as corpus:
        _sample(TextSampler(loaded, config, sampling.prompts), corpus, shape, sampling.rows, sampling.seed)
        yield corpus


def _load(spec: str, device: str, dtype: str) -> "tuple[LoadedModel, Tokenizer]":
    # Imported late: torch and transformers take seconds, and a wrong option should fail at once.
    from superdraft.decoding.build import tokenizer_of
    from superdraft.decoding.loading.loader import load_model
    from superdraft.decoding.model.weight_formats import WEIGHT_FORMATS

    if dtype in WEIGHT_FORMATS and WEIGHT_FORMATS[dtype].convert is not None:
        raise CommandError(
            f"With many rows at once, {dtype} is no faster than bfloat16, and less exact: choose another --dtype."
        )
    # With "auto", too, the weights stay dense.
    loaded = replace(load_model(spec, device=device, dtype=dtype), convert=None)
    return loaded, tokenizer_of(loaded)


def _read_prompts(path: Path | None, tokenizer: "Tokenizer", row_tokens: int) -> list[list[int]]:
    """Token ids of each line that is not blank; empty without a file."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x}).") from None
    prompts = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompt = tokenizer.encode_document(line.strip())
            if len(prompt) >= row_tokens:
                raise CommandError(
                    f"{path}, line {number}: {len(prompt)} tokens leave no room in rows of {row_tokens}."
                )
            prompts.append(prompt)
    if not prompts:
        raise CommandError(f"{path} holds no text.")
    return prompts


def _sample(sampler: "TextSampler", corpus: SampledCorpus, shape: ShardShape, num_rows: int, seed: int) -> None:
    """Sample the missing shards."""
    console = Console(stderr=True)
    num_shards = shape.num_shards(num_rows)
    missing = corpus.missing(num_shards)
    if corpus.num_removed:
        console.print(f"The settings have changed: {corpus.num_removed:,} finished shards are removed.")
    if len(missing) < num_shards:
        console.print(f"Continuing: {num_shards - len(missing):,} of {num_shards:,} shards exist.")
    corpus.check_disk_space(len(missing))
    start_s, num_tokens = time.monotonic(), 0
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        total = len(missing) * shape.num_rows * shape.row_tokens
        task = bar.add_task("sampling", total=total, speed="")

        def on_tokens(num_new: int) -> None:
            nonlocal num_tokens
            num_tokens += num_new
            speed = f"{num_tokens / (time.monotonic() - start_s):,.0f} tokens/s"
            bar.update(task, completed=num_tokens, speed=speed)

        for index in missing:
            corpus.write(index, sampler.sample(seed, index, on_tokens).ravel().tolist())
