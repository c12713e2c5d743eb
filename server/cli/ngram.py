"""`superdraft ngram`: build n-gram models, list them, look into them and check them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from superdraft.decoding.errors import ModelLoadError
from superdraft.ngram_models.building.build import BuildOptions, Stage, build_ngram_model
from superdraft.ngram_models.building.build import Progress as BuildProgress
from superdraft.ngram_models.building.corpus import (
    DEFAULT_ROW_TOKENS,
    DEFAULT_TEXT_FIELD,
    Document,
    corpus_size,
    encode_documents,
    read_documents,
    read_sequences,
)
from superdraft.ngram_models.building.disk_space import approximate_tokens, check_disk_space
from superdraft.ngram_models.building.encoder import Encoder
from superdraft.ngram_models.building.perplexity import HeldOutTail, measure_perplexity
from superdraft.ngram_models.building.work_folder import unfinished_builds
from superdraft.ngram_models.errors import NgramModelError
from superdraft.ngram_models.home import user_models_folder
from superdraft.ngram_models.scoring.scorer import KenLMScorer
from superdraft.ngram_models.store.inspection import top_continuations, verify_model
from superdraft.ngram_models.store.manifest import Manifest, TokenizerIdentity
from superdraft.ngram_models.store.registry import find_ngram_model, list_ngram_models, open_scorer
from superdraft.ngram_models.tools import find_tools
from superdraft.server.cli.distill import distill
from superdraft.server.ngrams.options import output_folder, prune_counts, tokenizer_identity

app = typer.Typer(help="Build n-gram models, list, inspect and verify them.", no_args_is_help=True)
app.command("distill")(distill)

_STAGES: dict[Stage, str] = {
    "read": "tokenising the corpus",
    "estimate": "estimating (lmplz)",
    "pack": "packing (build_binary)",
}

Name = Annotated[str, typer.Argument(help="The model's name, or the path of its folder.")]
TextField = Annotated[str, typer.Option(help="The field of a .jsonl row that holds its text.")]


@dataclass(frozen=True, slots=True)
class _LoadedTokenizer:
    hf_tokenizer: Any
    encoder: Encoder
    identity: TokenizerIdentity

    @property
    def end_of_text_id(self) -> int | None:
        return min(self.identity.end_of_text_ids, default=None)


@app.command("list")
def list_models() -> None:
    """List the n-gram models that have a name: the shipped ones and your own."""
    table = Table(Column("name", overflow="fold"), "order", "size", "tokenizer", "corpus", "licence")
    for model in list_ngram_models():
        manifest = model.manifest
        if manifest is None:
            table.add_row(model.name, "", "", "", f"[red]{model.problem}[/red]", "")
        else:
            corpus = f"{manifest.corpus.description} ({manifest.corpus.num_tokens:,} tokens)"
            size = decimal(manifest.binary_bytes)
            table.add_row(model.name, str(manifest.order), size, manifest.tokenizer.name, corpus, manifest.licence)
    Console().print(table)
    for name, folder in unfinished_builds(user_models_folder()):
        typer.echo(f"{name}: its build runs, or has stopped: build it again to go on, or remove {folder}", err=True)


@app.command("build")
def build(
    corpus: Annotated[
        list[str],
        typer.Argument(help="Text (.txt, .md, .jsonl), token files (.u16, .u32), any with .zst or .gz, folders, or -."),
    ],
    tokenizer: Annotated[str, typer.Option(help="The language model whose tokens are counted: name, folder or file.")],
    output: Annotated[str, typer.Option("--output", "-o", help="A name, or the path of the model's folder.")],
    text_field: TextField = DEFAULT_TEXT_FIELD,
    order: Annotated[int, typer.Option(help="The longest n-gram, in tokens (2 to 6).")] = 6,
    prune: Annotated[
        str, typer.Option(help="Leave out n-grams seen at most this often; a number an order.")
    ] = "0 0 1 1 2 2",
    quantize_bits: Annotated[int, typer.Option(help="Bits of a probability (1 to 25); 0: full floats.")] = 8,
    backoff_quantize_bits: Annotated[int, typer.Option(help="Bits of a back-off weight; 0: as --quantize-bits.")] = 8,
    memory: Annotated[str, typer.Option(help="For sorting: 4G say, or 50% of what the machine has.")] = "4G",
    tools: Annotated[Path | None, typer.Option(help="Folder of lmplz and build_binary.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the model, for its manifest.")] = "unknown",
    description: Annotated[str | None, typer.Option(help="Of the corpus; default: the names of its files.")] = None,
    row_tokens: Annotated[
        int, typer.Option(min=1, help="Token files: a new sequence begins after this many tokens.")
    ] = DEFAULT_ROW_TOKENS,
    held_out: Annotated[
        int, typer.Option(min=0, help="Leave out the last N documents and report the perplexity on them.")
    ] = 0,
) -> None:
    """Build an n-gram model for a language model's tokens with KenLM's lmplz and build_binary.

    A build that was stopped goes on where it was when it is started again with the same corpus.
    """
    with _errors_in_one_line():
        options = BuildOptions(
            order=order,
            prune=prune_counts(prune),
            quantize_bits=quantize_bits or None,
            backoff_quantize_bits=backoff_quantize_bits or None,
            memory=memory,
        )
        folder = output_folder(output)
        programs = find_tools(tools)
        size = corpus_size(corpus)
        if size is not None:
            check_disk_space(folder.parent, approximate_tokens(size.unpacked_bytes), order, options.prune)
        loaded = _tokenizer(tokenizer)
        with _progress_bar(size.bytes_on_disk if size is not None else None) as (on_read, progress):
            all_documents = read_documents(corpus, row_tokens=row_tokens, text_field=text_field, on_read=on_read)
            documents = HeldOutTail(all_documents, held_out)
            manifest = build_ngram_model(
                documents,
                folder,
                tokenizer=loaded.identity,
                tools=programs,
                encoder=loaded.encoder,
                options=options,
                description=description or ", ".join(Path(source).name for source in corpus),
                licence=licence,
                progress=progress,
            )
        _report(folder, manifest, documents.tail, loaded)


@app.command("inspect")
def inspect_model(
    name: Name,
    text: Annotated[list[str] | None, typer.Option(help="Perplexity on this file; as a corpus. Repeatable.")] = None,
    phrase: Annotated[list[str] | None, typer.Option(help="The tokens expected after it. Repeatable.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of them.")] = 10,
    tokenizer: Annotated[str | None, typer.Option(help="The language model; default: the manifest's.")] = None,
    text_field: TextField = DEFAULT_TEXT_FIELD,
) -> None:
    """Show what a model holds, its perplexity on a text, and what it expects after a phrase."""
    with _errors_in_one_line():
        folder = find_ngram_model(name)
        manifest = Manifest.read(folder)
        _describe(folder, manifest)
        if not (text or phrase):
            return
        loaded = _tokenizer(tokenizer or manifest.tokenizer.name)
        manifest.verify_tokenizer(loaded.identity.fingerprint)
        scorer = open_scorer(folder, manifest)
        for path in text or []:
            sequences = read_sequences(
                [path], encode=loaded.encoder, end_of_text_id=loaded.end_of_text_id, text_field=text_field
            )
            result = measure_perplexity(scorer, sequences)
            typer.echo(
                f"\nperplexity {result.perplexity:.3f} on {result.num_tokens:,} tokens of {path}, "
                f"{result.num_unknown:,} of them unknown"
            )
        for words in phrase or []:
            _show_continuations(words, scorer, manifest, loaded, top)


@app.command()
def verify(
    name: Name,
    tokenizer: Annotated[str | None, typer.Option(help="The language model it should be for.")] = None,
) -> None:
    """Check that a model is whole: size, SHA-256, order, that KenLM loads it, and its tokenizer. Else exit code 2."""
    with _errors_in_one_line():
        fingerprint = _tokenizer(tokenizer).identity.fingerprint if tokenizer else None
        for sentence in verify_model(find_ngram_model(name), fingerprint):
            typer.echo(sentence)


def _tokenizer(spec: str) -> _LoadedTokenizer:
    # Imported late: torch and transformers take seconds, and a wrong option should be told at once.
    from superdraft.decoding.loading.loader import load_tokenizer
    from superdraft.decoding.text.tokenizer import Tokenizer

    hf_tokenizer = load_tokenizer(spec)
    tokenizer = Tokenizer(hf_tokenizer)
    identity = tokenizer_identity(Path(spec).resolve().name if Path(spec).exists() else spec, tokenizer)
    return _LoadedTokenizer(hf_tokenizer, Encoder(hf_tokenizer), identity)


def _report(folder: Path, manifest: Manifest, held_out: Sequence[Document], loaded: _LoadedTokenizer) -> None:
    corpus = manifest.corpus
    typer.echo(folder)
    typer.echo(
        f"order {manifest.order}, {manifest.binary_bytes:,} bytes, "
        f"from {corpus.num_tokens:,} tokens in {corpus.num_documents:,} documents"
    )
    if held_out:
        sequences = encode_documents(held_out, loaded.encoder, loaded.end_of_text_id)
        result = measure_perplexity(open_scorer(folder, manifest), sequences)
        typer.echo(
            f"perplexity {result.perplexity:.3f} on {result.num_tokens:,} held-out tokens, "
            f"{result.num_unknown:,} of them unknown"
        )


def _describe(folder: Path, manifest: Manifest) -> None:
    corpus, tuning = manifest.corpus, manifest.tuning
    bits, backoff_bits = manifest.quantize_bits, manifest.backoff_quantize_bits
    lines = {
        "name": manifest.name,
        "folder": folder,
        "size": f"{manifest.binary_bytes:,} bytes",
        "quantised": f"probabilities {bits} bits, back-off weights {backoff_bits} bits" if bits else "no",
        "tokenizer": f"{manifest.tokenizer.name} ({manifest.tokenizer.vocabulary_size:,} tokens)",
        "corpus": f"{corpus.description}: {corpus.num_tokens:,} tokens in {corpus.num_documents:,} documents",
        "licence": manifest.licence,
        "built with": manifest.build_tool,
        "tuned": "no" if tuning is None else f"alpha {tuning.alpha}, tau {tuning.tau}, m {tuning.candidates_per_draft}",
    }
    for key, value in lines.items():
        typer.echo(f"{key:10} {value}")
    table = Table("order", "n-grams", "left out up to count")
    for order in range(1, manifest.order + 1):
        count = f"{manifest.ngram_counts[order - 1]:,}" if manifest.ngram_counts else "not recorded"
        pruned = manifest.prune[min(order, len(manifest.prune)) - 1]
        table.add_row(str(order), count, str(pruned or "-"))
    Console().print(table)


def _show_continuations(
    phrase: str, scorer: KenLMScorer, manifest: Manifest, loaded: _LoadedTokenizer, num_continuations: int
) -> None:
    (token_ids,) = loaded.encoder([phrase])
    table = Table("token", "id", "probability", title=f"after {phrase!r}", title_justify="left")
    for continuation in top_continuations(scorer, manifest, token_ids, num_continuations):
        ends = continuation.token_id in manifest.tokenizer.end_of_text_ids
        text = "(end of text)" if ends else repr(loaded.hf_tokenizer.decode([continuation.token_id]))
        table.add_row(text, str(continuation.token_id), f"{continuation.probability:.4f}")
    Console().print(table)


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except (NgramModelError, ModelLoadError, ValueError, OSError) as error:
        message = (
            str(error) if not isinstance(error, OSError) else f"{error.filename or 'file system'}: {error.strerror}"
        )
        typer.echo(f"superdraft ngram: {message}", err=True)
        raise typer.Exit(2) from None


@contextmanager
def _progress_bar(num_bytes: int | None) -> Iterator[tuple[Callable[[int], None], BuildProgress]]:
    """A bar that names the stage; yields what to call when bytes of the corpus are read, and when a stage goes on."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[tokens]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[Stage, TaskID] = {"read": bar.add_task(_STAGES["read"], total=num_bytes, tokens="")}

        def show(stage: Stage, num_tokens: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bar.stop_task(task)
                # How far KenLM's programs are cannot be told.
                tasks[stage] = bar.add_task(_STAGES[stage], total=None, tokens="")
            bar.update(tasks[stage], tokens=f"{num_tokens:,} tokens")

        yield lambda num_bytes: bar.advance(tasks["read"], num_bytes), show
