"""`superdraft ngram distill`: build an n-gram model from samples of a language model."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from superdraft.ngram_models.building.build import BuildOptions, Stage, build_ngram_model
from superdraft.ngram_models.building.disk_space import check_disk_space
from superdraft.ngram_models.building.sampled_corpus import SampledCorpus, ShardShape, open_sampled_corpus
from superdraft.ngram_models.store.manifest import MANIFEST_FILE
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
    command_errors,
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
_STAGES: dict[Stage, str] = {"read": "counting", "estimate": "estimating (lmplz)", "pack": "packing (build_binary)"}


@app.command()
def distill(
    model: Annotated[str, typer.Argument(help="Language model to sample from, as in superdraft serve.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Name of the n-gram model, or path of its folder.")],
    rows: Annotated[
        int, typer.Option(min=1, help="Number of rows to sample; a row holds one or more texts.")
    ] = 131_072,
    row_tokens: Annotated[int, typer.Option(min=2, help="Tokens per row; longer texts are cut off.")] = 256,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Rows sampled together. If not set, {_CPU_BATCH} on a CPU and {_GPU_BATCH} on a GPU."
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="Sampling temperature; 0 picks the most likely tokens.")
    ] = 1.0,
    top_p: Annotated[
        float,
        typer.Option(min=1e-6, max=1, help="Sample from the smallest set of tokens with this total probability."),
    ] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Seed; the same seed samples the same rows.")] = 0,
    prompts: Annotated[
        Path | None, typer.Option(help="File of beginnings, one per line; each text starts with a random one.")
    ] = None,
    device: Annotated[str, setting("device")] = "auto",
    dtype: Annotated[str, typer.Option(help="Data type of the weights: auto, float32, bfloat16 or float16.")] = "auto",
    work: Annotated[
        Path | None, typer.Option(help="Folder to keep the samples in. If not set, they are removed after the build.")
    ] = None,
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
        folder = output_folder(output)
        if folder.exists() and not (folder / MANIFEST_FILE).is_file():
            raise CommandError(f"{folder} exists and is not an n-gram model. Choose another name or remove it.")
        programs = find_tools(tools)
        check_disk_space(folder.parent, rows * row_tokens, order, options.prune)
        loaded, tokenizer = _load(model, device, dtype)
        identity = tokenizer_identity(loaded.name, tokenizer)
        batch = min(rows, batch or (_CPU_BATCH if loaded.model.device.type == "cpu" else _GPU_BATCH))
        sampler, settings = _sampler(
            loaded, tokenizer, (batch, row_tokens), (temperature, top_p), _read_prompts(prompts, tokenizer, row_tokens)
        )
        shape = ShardShape(batch, row_tokens, identity.vocabulary_size)
        samples = work or folder.parent / f".{folder.name}.samples"
        with open_sampled_corpus(samples, {**settings, "seed": seed}, shape) as corpus:
            _sample(sampler, corpus, shape, rows, seed)
            with _build_progress() as progress:
                manifest = build_ngram_model(
                    corpus.read(rows),
                    folder,
                    tokenizer=identity,
                    tools=programs,
                    options=options,
                    description=f"{rows:,} samples of {row_tokens} tokens from {loaded.name} at temperature "
                    f"{temperature:g}, top-p {top_p:g}, seed {seed}" + (f", prompts {prompts.name}" if prompts else ""),
                    licence=licence,
                    progress=progress,
                )
            if work is None:
                corpus.remove()
        typer.echo(folder)
        typer.echo(
            f"order {manifest.order}, {manifest.binary_bytes:,} bytes, from {manifest.corpus.num_tokens:,} tokens "
            f"in {manifest.corpus.num_documents:,} documents"
        )


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


def _sampler(
    loaded: "LoadedModel",
    tokenizer: "Tokenizer",
    shape: tuple[int, int],
    choice: tuple[float, float],
    prompts: Sequence[Sequence[int]],
) -> "tuple[TextSampler, dict[str, object]]":
    """The sampler, and everything that its samples depend on besides the seed and the shape."""
    from superdraft.decoding.distillation.sampler import SamplerConfig, TextSampler, weights_fingerprint

    settings: dict[str, object] = {
        "weights": weights_fingerprint(loaded.model),
        "dtype": str(loaded.model.dtype),
        "tokenizer": tokenizer_fingerprint(tokenizer.vocabulary),
        "temperature": choice[0],
        "top_p": choice[1],
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
    }
    return TextSampler(loaded, SamplerConfig(*shape, *choice), prompts), settings


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


@contextmanager
def _build_progress() -> Iterator["_StageBar"]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.fields[tokens]}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        yield _StageBar(bar)


class _StageBar:
    """Shows the stage of a build and its number of tokens in one line."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task(_STAGES["read"], total=None, tokens="")

    def __call__(self, stage: Stage, num_tokens: int) -> None:
        self._bar.update(self._task, description=_STAGES[stage], tokens=f"{num_tokens:,} tokens")
