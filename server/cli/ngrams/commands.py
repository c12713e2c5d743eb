"""`superdraft ngram`: build, list, inspect and verify n-gram models."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Column, Table

from superdraft.ngram_models.building.corpus import (
    DEFAULT_ROW_TOKENS,
    DEFAULT_TEXT_FIELD,
    corpus_size,
    encode_documents,
    read_documents,
)
from superdraft.ngram_models.building.disk_space import approximate_tokens
from superdraft.ngram_models.building.encoder import Encoder
from superdraft.ngram_models.building.perplexity import HeldOutTail, measure_perplexity
from superdraft.ngram_models.building.work_folder import unfinished_builds
from superdraft.ngram_models.home import user_models_folder
from superdraft.ngram_models.scoring.scorer import KenLMScorer
from superdraft.ngram_models.store.inspection import top_continuations, verify_model
from superdraft.ngram_models.store.manifest import Manifest, TokenizerIdentity
from superdraft.ngram_models.store.registry import find_ngram_model, list_ngram_models, open_scorer
from superdraft.server.cli.ngrams.build_options import (
    BuildBar,
    Target,
    command_errors,
    takes_target,
    tokenizer_identity,
)
from superdraft.server.cli.ngrams.distill import distill

app = typer.Typer(
    help="Build n-gram models, list, inspect and verify them.", no_args_is_help=True, add_completion=False
)
app.command("distill")(distill)

Name = Annotated[str, typer.Argument(help="Name of the model, or path of its folder.")]
Corpus = Annotated[
    list[str],
    typer.Argument(help="Text (.txt, .md, .jsonl), token files (.u16, .u32), each also as .zst or .gz, folders, or -."),
]
Description = Annotated[str | None, typer.Option(help="Description of the corpus. If not set, the names of its files.")]
RowTokens = Annotated[int, typer.Option(min=1, help="Length of the sequences in token files, in tokens.")]
HeldOut = Annotated[int, typer.Option(min=0, help="Leave out the last N documents, and report the perplexity on them.")]
TextField = Annotated[str, typer.Option(help="Field of .jsonl rows that holds the text.")]


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
        typer.echo(
            f"{name}: its build is running or was stopped: build it again to continue, or remove {folder}", err=True
        )


@app.command("build")
@takes_target
def build(
    target: Target,
    corpus: Corpus,
    tokenizer: Annotated[str, typer.Option(help="Language model whose tokens are counted: a name, folder or file.")],
    text_field: TextField = DEFAULT_TEXT_FIELD,
    description: Description = None,
    row_tokens: RowTokens = DEFAULT_ROW_TOKENS,
    held_out: HeldOut = 0,
) -> None:
    """Build an n-gram model for a language model's tokens with KenLM's lmplz and build_binary.

    An interrupted build continues where it stopped when it is started again with the same corpus.
    """
    with command_errors():
        size = corpus_size(corpus)
        target.check(0 if size is None else approximate_tokens(size.unpacked_bytes))
        loaded = _tokenizer(tokenizer)
        bar = BuildBar("tokenising the corpus", None if size is None else size.bytes_on_disk)
        all_documents = read_documents(corpus, row_tokens=row_tokens, text_field=text_field, on_read=bar.on_read)
        documents = HeldOutTail(all_documents, held_out)
        manifest = target.build(
            documents,
            bar,
            tokenizer=loaded.identity,
            encoder=loaded.encoder,
            description=description or ", ".join(Path(source).name for source in corpus),
        )
        if documents.tail:
            sequences = encode_documents(documents.tail, loaded.encoder, loaded.end_of_text_id)
            typer.echo(_perplexity(open_scorer(target.folder, manifest), sequences, "held-out tokens"))


@app.command("inspect")
def inspect_model(
    name: Name,
    text: Annotated[
        list[str] | None, typer.Option(help="Text or token file to measure the perplexity on. Repeatable.")
    ] = None,
    phrase: Annotated[
        list[str] | None, typer.Option(help="Phrase to show the most likely next tokens for. Repeatable.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of next tokens to show per phrase.")] = 10,
    tokenizer: Annotated[str | None, typer.Option(help="Language model. If not set, the one in the manifest.")] = None,
    text_field: TextField = DEFAULT_TEXT_FIELD,
) -> None:
    """Show a model's manifest, its perplexity on a text, and the most likely tokens after a phrase."""
    with command_errors():
        folder = find_ngram_model(name)
        manifest = Manifest.read(folder)
        _describe(folder, manifest)
        if not (text or phrase):
            return
        loaded = _tokenizer(tokenizer or manifest.tokenizer.name)
        manifest.verify_tokenizer(loaded.identity.fingerprint)
        scorer = open_scorer(folder, manifest)
        for path in text or []:
            documents = read_documents([path], text_field=text_field)
            sequences = encode_documents(documents, loaded.encoder, loaded.end_of_text_id)
            typer.echo("\n" + _perplexity(scorer, sequences, f"tokens of {path}"))
        for words in phrase or []:
            _show_continuations(words, scorer, manifest, loaded, top)


@app.command()
def verify(
    name: Name,
    tokenizer: Annotated[str | None, typer.Option(help="Language model that it must be for.")] = None,
) -> None:
    """Check a model's size, SHA-256, order, loading and tokenizer. Exit code 2 if something is wrong."""
    with command_errors():
        fingerprint = _tokenizer(tokenizer).identity.fingerprint if tokenizer else None
        for sentence in verify_model(find_ngram_model(name), fingerprint):
            typer.echo(sentence)


def _tokenizer(spec: str) -> _LoadedTokenizer:
    # Imported late: torch and transformers take seconds, and a wrong option should fail at once.
    from superdraft.decoding.loading.loader import load_tokenizer
    from superdraft.decoding.text.tokenizer import Tokenizer

    hf_tokenizer = load_tokenizer(spec)
    tokenizer = Tokenizer(hf_tokenizer)
    identity = tokenizer_identity(Path(spec).resolve().name if Path(spec).exists() else spec, tokenizer)
    return _LoadedTokenizer(hf_tokenizer, Encoder(hf_tokenizer), identity)


def _perplexity(scorer: KenLMScorer, sequences: Iterable[Sequence[int]], what: str) -> str:
    result = measure_perplexity(scorer, sequences)
    return f"perplexity {result.perplexity:.3f} on {result.num_tokens:,} {what}, {result.num_unknown:,} of them unknown"


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
    for token_id, probability in top_continuations(scorer, manifest, token_ids, num_continuations):
        ends = token_id in manifest.tokenizer.end_of_text_ids
        text = "(end of text)" if ends else repr(loaded.hf_tokenizer.decode([token_id]))
        table.add_row(text, str(token_id), f"{probability:.4f}")
    Console().print(table)
