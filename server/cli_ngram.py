"""`superdraft ngram`: build n-gram models and list them."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from superdraft.decoding.errors import ModelLoadError
from superdraft.ngram_models.build import BuildOptions, Stage, build_ngram_model
from superdraft.ngram_models.build import Progress as BuildProgress
from superdraft.ngram_models.corpus import DEFAULT_ROW_TOKENS, read_sequences
from superdraft.ngram_models.errors import NgramModelError
from superdraft.ngram_models.home import user_models_folder
from superdraft.ngram_models.manifest import Manifest, TokenizerIdentity
from superdraft.ngram_models.perplexity import HeldOutTail, measure_perplexity
from superdraft.ngram_models.registry import is_model_name, list_ngram_models, open_scorer
from superdraft.ngram_models.tools import find_tools
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint

app = typer.Typer(help="Build n-gram models and list them.", no_args_is_help=True)

_STAGES: dict[Stage, str] = {
    "read": "reading the corpus",
    "estimate": "estimating (lmplz)",
    "pack": "packing (build_binary)",
}


@app.command("list")
def list_models() -> None:
    """List the n-gram models that have a name: the shipped ones and your own."""
    table = Table("name", "order", "size", "tokenizer", "corpus", "licence")
    for model in list_ngram_models():
        manifest = model.manifest
        if manifest is None:
            table.add_row(model.name, "", "", "", f"[red]{model.problem}[/red]", "")
        else:
            size = f"{manifest.binary_bytes / 1e6:.1f} MB"
            corpus = f"{manifest.corpus.description} ({manifest.corpus.num_tokens:,} tokens)"
            table.add_row(model.name, str(manifest.order), size, manifest.tokenizer.name, corpus, manifest.licence)
    Console().print(table)


@app.command("build")
def build(
    corpus: Annotated[
        list[str],
        typer.Argument(help="Text (.txt, .md, .jsonl), token files (.u16), any with .zst or .gz, folders, or -."),
    ],
    tokenizer: Annotated[str, typer.Option(help="The language model whose tokens are counted: name, folder or file.")],
    output: Annotated[str, typer.Option("--output", "-o", help="A name, or the path of the model's folder.")],
    order: Annotated[int, typer.Option(help="The longest n-gram, in tokens (2 to 6).")] = 6,
    prune: Annotated[
        str, typer.Option(help="Leave out n-grams seen at most this often; a number an order.")
    ] = "0 0 1 1 2 2",
    quantize: Annotated[int, typer.Option(help="Bits of a probability (1 to 25); 0: full floats.")] = 8,
    backoff_quantize: Annotated[int, typer.Option(help="Bits of a back-off weight; 0: as --quantize.")] = 8,
    memory: Annotated[str, typer.Option(help="Memory for lmplz, 4G or 80% say.")] = "4G",
    tools: Annotated[Path | None, typer.Option(help="Folder of lmplz and build_binary.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the model, for its manifest.")] = "unknown",
    description: Annotated[str | None, typer.Option(help="Of the corpus; default: the names of its files.")] = None,
    row_tokens: Annotated[
        int, typer.Option(min=1, help="Token files: a new sequence begins after this many tokens.")
    ] = DEFAULT_ROW_TOKENS,
    held_out: Annotated[
        int, typer.Option(min=0, help="Leave out the last N sequences and report the perplexity on them.")
    ] = 0,
) -> None:
    """Build an n-gram model for a language model's tokens with KenLM's lmplz and build_binary."""
    with _errors_in_one_line():
        options = BuildOptions(
            order=order,
            prune=_prune_counts(prune),
            quantize_bits=quantize or None,
            backoff_quantize_bits=backoff_quantize or None,
            memory=memory,
        )
        programs = find_tools(tools)
        hf_tokenizer, identity = _tokenizer(tokenizer)
        folder = user_models_folder() / output if is_model_name(output) else Path(output).expanduser().resolve()

        def encode(texts: list[str]) -> list[list[int]]:
            ids: list[list[int]] = hf_tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            return ids

        end_of_text_id = min(identity.end_of_text_ids, default=None)
        all_sequences = read_sequences(corpus, encode=encode, end_of_text_id=end_of_text_id, row_tokens=row_tokens)
        sequences = HeldOutTail(all_sequences, held_out)
        with _progress_bar() as progress:
            manifest = build_ngram_model(
                sequences,
                folder,
                tokenizer=identity,
                tools=programs,
                options=options,
                description=description or ", ".join(Path(source).name for source in corpus),
                licence=licence,
                progress=progress,
            )
        _report(folder, manifest, sequences)


def _prune_counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(count) for count in shlex.split(text))
    except ValueError:
        raise ValueError(f"The pruning must be numbers with spaces between them, got {text!r}.") from None


def _tokenizer(spec: str) -> tuple[Any, TokenizerIdentity]:
    # Imported late: torch and transformers take seconds, and a wrong option should be told at once.
    from superdraft.decoding.model_loader import load_tokenizer
    from superdraft.decoding.tokenizer import Tokenizer

    hf_tokenizer = load_tokenizer(spec)
    tokenizer = Tokenizer(hf_tokenizer)
    identity = TokenizerIdentity(
        name=Path(spec).resolve().name if Path(spec).exists() else spec,
        fingerprint=tokenizer_fingerprint(tokenizer.vocabulary),
        vocabulary_size=max(tokenizer.vocabulary.values()) + 1,
        end_of_text_ids=tuple(sorted(tokenizer.eos_token_ids)),
    )
    return hf_tokenizer, identity


def _report(folder: Path, manifest: Manifest, sequences: HeldOutTail) -> None:
    lines = [
        f"{folder}",
        f"order {manifest.order}, {manifest.binary_bytes:,} bytes, from {manifest.corpus.num_tokens:,} tokens "
        f"in {manifest.corpus.num_documents:,} documents",
    ]
    if sequences.tail:
        result = measure_perplexity(open_scorer(folder, manifest), sequences.tail)
        lines.append(
            f"perplexity {result.perplexity:.3f} on {result.num_tokens:,} held-out tokens, "
            f"{result.num_unknown:,} of them unknown"
        )
    sys.stdout.write("\n".join(lines) + "\n")


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except (NgramModelError, ModelLoadError, ValueError, OSError) as error:
        message = (
            str(error) if not isinstance(error, OSError) else f"{error.filename or 'file system'}: {error.strerror}"
        )
        sys.stderr.write(f"superdraft ngram: {message}\n")
        raise typer.Exit(2) from None


@contextmanager
def _progress_bar() -> Iterator[BuildProgress]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[tokens]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(_STAGES["read"], total=None, tokens="")

        def show(stage: Stage, num_tokens: int) -> None:
            bar.update(task, description=_STAGES[stage], tokens=f"{num_tokens:,} tokens")

        yield show
