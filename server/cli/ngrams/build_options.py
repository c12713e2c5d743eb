"""Options, progress and errors of the commands that build n-gram models."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from superdraft.ngram_models.building.build import Progress as BuildProgress
from superdraft.ngram_models.building.build import Stage
from superdraft.ngram_models.store.manifest import Manifest
from superdraft.server.errors import CommandError

Order = Annotated[int, typer.Option(help="Length of the longest n-gram, in tokens (2 to 6).")]
Prune = Annotated[str, typer.Option(help="Leave out n-grams seen at most this often; one number per order.")]
QuantizeBits = Annotated[int, typer.Option(help="Bits per probability (1 to 25); 0: full floats for all.")]
BackoffQuantizeBits = Annotated[int, typer.Option(help="Bits per back-off weight; 0: as --quantize-bits.")]
Memory = Annotated[str, typer.Option(help="Memory for sorting, such as 4G, or 50% of the machine's.")]
Tools = Annotated[Path | None, typer.Option(help="Folder of KenLM's lmplz and build_binary.")]
Licence = Annotated[str, typer.Option(help="Licence of the n-gram model, for its manifest.")]

DEFAULT_PRUNE = "0 0 1 1 2 2"


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


@contextmanager
def build_progress(reading: str, num_bytes: int | None = None) -> Iterator[tuple[Callable[[int], None], BuildProgress]]:
    """A progress bar per stage of a build; yields callbacks for bytes of the corpus that were read, and for a stage.

    Args:
        reading: what the first stage does.
        num_bytes: size of the corpus; None if it is not known.
    """
    titles: dict[Stage, str] = {"read": reading, "estimate": "estimating (lmplz)", "pack": "packing (build_binary)"}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[tokens]}"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        tasks: dict[Stage, TaskID] = {"read": bar.add_task(reading, total=num_bytes, tokens="")}

        def show(stage: Stage, num_tokens: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bar.stop_task(task)
                # KenLM's programs do not report their progress.
                tasks[stage] = bar.add_task(titles[stage], total=None, tokens="")
            bar.update(tasks[stage], tokens=f"{num_tokens:,} tokens")

        yield lambda num_read: bar.advance(tasks["read"], num_read), show


def show_built(folder: Path, manifest: Manifest) -> None:
    """Print where a new model is, and how large it is."""
    corpus = manifest.corpus
    typer.echo(folder)
    typer.echo(
        f"order {manifest.order}, {manifest.binary_bytes:,} bytes, "
        f"from {corpus.num_tokens:,} tokens in {corpus.num_documents:,} documents"
    )
