"""`superdraft ngram distill`: build an n-gram model from samples of a language model."""

import time
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from superdraft.ngram_models.building.sampled_corpus import SampledCorpus, open_sampled_corpus
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
from superdraft.server.cli.ngrams.build_options import (
    BuildBar,
    Target,
    command_errors,
    takes_target,
    tokenizer_identity,
)
from superdraft.server.cli.settings_options import setting
from superdraft.server.errors import CommandError

if TYPE_CHECKING:
    from superdraft.decoding.distillation.sampler import SamplerConfig, TextSampler
    from superdraft.decoding.loading.loader import LoadedModel
    from superdraft.decoding.text.tokenizer import Tokenizer

_CPU_BATCH, _GPU_BATCH = 64, 1024

Model = Annotated[str, typer.Argument(help="Language model to sample from, as in superdraft serve.")]
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


@takes_target
def distill(
    target: Target,
    model: Model,
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
) -> None:
    """Sample a corpus from a language model and build an n-gram model from it.

    An interrupted run continues where it stopped when it is started again with the same options.
    """
    with command_errors():
        target.check(rows * row_tokens)
        loaded, tokenizer = _load(model, device, dtype)
        from superdraft.decoding.distillation.sampler import SamplerConfig, TextSampler  # late, as in `_load`

        batch = batch or (_CPU_BATCH if loaded.model.device.type == "cpu" else _GPU_BATCH)
        config = SamplerConfig(min(rows, batch), row_tokens, temperature, top_p)
        beginnings = _read_prompts(prompts, tokenizer, row_tokens)
        settings = _settings(loaded, tokenizer, config, beginnings, seed)
        with open_sampled_corpus(work or target.folder.parent / f".{target.folder.name}.samples", settings) as corpus:
            num_shards = -(-rows // config.num_rows)
            _sample(TextSampler(loaded, config, beginnings), corpus, config, num_shards, seed)
            target.build(
                islice(corpus.read(num_shards, row_tokens), rows),
                BuildBar("counting"),
                tokenizer=tokenizer_identity(loaded.name, tokenizer),
                description=f"{rows:,} samples of {row_tokens} tokens from {loaded.name} at temperature "
                f"{temperature:g}, top-p {top_p:g}, seed {seed}" + (f", prompts {prompts.name}" if prompts else ""),
            )
            if work is None:
                corpus.remove()


def _settings(
    loaded: "LoadedModel", tokenizer: "Tokenizer", config: "SamplerConfig", prompts: list[list[int]], seed: int
) -> dict[str, Any]:
    """All that determines the content of the samples."""
    from superdraft.decoding.distillation.sampler import weights_fingerprint

    return {
        "weights": weights_fingerprint(loaded.model),
        "dtype": str(loaded.model.dtype),
        "tokenizer": tokenizer_fingerprint(tokenizer.vocabulary),
        "prompts": prompts,
        "seed": seed,
        **asdict(config),
    }


def _load(spec: str, device: str, dtype: str) -> "tuple[LoadedModel, Tokenizer]":
    # Imported late: torch and transformers take seconds, and a wrong option should fail at once.
    from superdraft.decoding.build import tokenizer_of
    from superdraft.decoding.loading.loader import ModelOptions, load_model
    from superdraft.decoding.model.weight_formats import WEIGHT_FORMATS

    if dtype in WEIGHT_FORMATS and WEIGHT_FORMATS[dtype].convert is not None:
        raise CommandError(
            f"With many rows at once, {dtype} is no faster than bfloat16, and less exact: choose another --dtype."
        )
    # With "auto", too, the weights stay dense.
    loaded = replace(load_model(ModelOptions(model=spec, device=device, dtype=dtype)), convert=None)
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


def _sample(sampler: "TextSampler", corpus: SampledCorpus, config: "SamplerConfig", num_shards: int, seed: int) -> None:
    """Sample the missing shards."""
    console = Console(stderr=True)
    missing = corpus.missing(num_shards)
    if corpus.num_removed:
        console.print(f"The settings have changed: {corpus.num_removed:,} finished shards are removed.")
    if len(missing) < num_shards:
        console.print(f"Continuing: {num_shards - len(missing):,} of {num_shards:,} shards exist.")
    total = len(missing) * config.num_rows * config.row_tokens
    corpus.check_disk_space(total)
    start_s, num_tokens = time.monotonic(), 0
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("sampling", total=total, speed="")

        def on_tokens(num_new: int) -> None:
            nonlocal num_tokens
            num_tokens += num_new
            speed = f"{num_tokens / (time.monotonic() - start_s):,.0f} tokens/s"
            bar.update(task, completed=num_tokens, speed=speed)

        for index in missing:
            corpus.write(index, sampler.sample(seed, index, on_tokens).ravel().tolist())
