"""The model to build, progress and errors of the commands that build n-gram models."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from superdraft.ngram_models.building.build import BuildOptions, Stage, build_ngram_model
from superdraft.ngram_models.building.corpus import Document
from superdraft.ngram_models.building.disk_space import check_disk_space
from superdraft.ngram_models.building.encoder import Encoder
from superdraft.ngram_models.building.work_folder import refuse_to_replace_other_things
from superdraft.ngram_models.home import user_models_folder
from superdraft.ngram_models.store.manifest import Manifest, TokenizerIdentity
from superdraft.ngram_models.store.registry import is_model_name
from superdraft.ngram_models.tools import find_tools
from superdraft.ngram_models.vocabulary import tokenizer_fingerprint
from superdraft.server.errors import CommandError

if TYPE_CHECKING:
    from superdraft.decoding.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Target:
    """The model to build. Its fields are the options that `takes_target` gives a command."""

    output: Annotated[str, typer.Option("--output", "-o", help="Name of the new model, or path of its folder.")]
    order: Annotated[int, typer.Option(help="Length of the longest n-gram, in tokens (2 to 6).")] = 6
    prune: Annotated[str, typer.Option(help="Leave out n-grams seen at most this often; one number per order.")] = (
        "0 0 1 1 2 2"
    )
    quantize_bits: Annotated[int, typer.Option(help="Bits per probability (1 to 25); 0: full floats for all.")] = 8
    backoff_quantize_bits: Annotated[int, typer.Option(help="Bits per back-off weight; 0: as --quantize-bits.")] = 0
    memory: Annotated[str, typer.Option(help="Memory for sorting, such as 4G, or 50% of the machine's.")] = "4G"
    tools: Annotated[Path | None, typer.Option(help="Folder of KenLM's lmplz and build_binary.")] = None
    licence: Annotated[str, typer.Option(help="Licence of the n-gram model, for its manifest.")] = "unknown"

    @property
    def folder(self) -> Path:
        """The new model's folder: a plain name goes among the user's models, anything else is a path."""
        own = user_models_folder() / self.output
        return own if is_model_name(self.output) else Path(self.output).expanduser().resolve()

    @property
    def _options(self) -> BuildOptions:
        try:
            prune = tuple(int(count) for count in self.prune.split())
        except ValueError:
            raise ValueError(f"The pruning must be integers separated by spaces, got {self.prune!r}.") from None
        bits, backoff_bits = self.quantize_bits or None, self.backoff_quantize_bits or None
        return BuildOptions(self.order, prune, bits, backoff_bits, self.memory)

    def check(self, num_tokens: int) -> None:
        """Raise the errors that a build from so many tokens would end with, before anything slow begins."""
        options = self._options
        find_tools(self.tools)
        refuse_to_replace_other_things(self.folder)
        check_disk_space(self.folder.parent, num_tokens, options.order, options.prune)

    def build(
        self,
        documents: Iterable[Document],
        bar: "BuildBar",
        *,
        tokenizer: TokenizerIdentity,
        encoder: Encoder | None = None,
        description: str,
    ) -> Manifest:
        """Build the model as `build_ngram_model` does, and print where it is, and how large."""
        with bar:
            manifest = build_ngram_model(
                documents,
                self.folder,
                tokenizer=tokenizer,
                tools=find_tools(self.tools),
                encoder=encoder,
                options=self._options,
                description=description,
                licence=self.licence,
                progress=bar.show,
            )
        corpus = manifest.corpus
        typer.echo(self.folder)
        typer.echo(
            f"order {manifest.order}, {manifest.binary_bytes:,} bytes, "
            f"from {corpus.num_tokens:,} tokens in {corpus.num_documents:,} documents"
        )
        return manifest


def takes_target(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command with the parameter `target` the fields of `Target` as options instead."""

    def run(**flags: Any) -> None:
        command(target=Target(**{field.name: flags.pop(field.name) for field in fields(Target)}), **flags)

    own = [parameter for parameter in inspect.signature(command).parameters.values() if parameter.name != "target"]
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=field.type,
        )
        for field in fields(Target)
    ]
    run.__doc__, run.__signature__ = command.__doc__, inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    return run


def tokenizer_identity(name: str, tokenizer: "Tokenizer") -> TokenizerIdentity:
    """The tokenizer's identity in a model's manifest."""
    return TokenizerIdentity(
        name=name,
        fingerprint=tokenizer_fingerprint(tokenizer.vocabulary),
        vocabulary_size=max(tokenizer.vocabulary.values()) + 1,
        end_of_text_ids=tuple(sorted(tokenizer.eos_token_ids)),
    )


@contextmanager
def command_errors() -> Iterator[None]:
    """Turn errors of options, the file system and GPU memory into errors of one line."""
    try:
        yield
    except ValueError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{error.filename or 'file system'}: {error.strerror}") from None
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise CommandError("The GPU has too little memory for this many rows at once: lower --batch.") from None
        raise


class BuildBar(Progress):
    """A progress bar per stage of a build.

    Args:
        reading: what the first stage does.
        num_bytes: size of the corpus; None if it is not known.
    """

    def __init__(self, reading: str, num_bytes: int | None = None) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[tokens]}"))
        super().__init__(*columns, TimeElapsedColumn(), console=Console(stderr=True))
        self._stages: dict[Stage, TaskID] = {"read": self.add_task(reading, total=num_bytes, tokens="")}

    def on_read(self, num_bytes: int) -> None:
        """Record that bytes of the corpus were read."""
        self.advance(self._stages["read"], num_bytes)

    def show(self, stage: Stage, num_tokens: int) -> None:
        """Record how many tokens a stage has processed."""
        if stage not in self._stages:
            for task in self._stages.values():
                self.stop_task(task)
            # KenLM's programs do not report their progress.
            title = "estimating (lmplz)" if stage == "estimate" else "packing (build_binary)"
            self._stages[stage] = self.add_task(title, total=None, tokens="")
        self.update(self._stages[stage], tokens=f"{num_tokens:,} tokens")
