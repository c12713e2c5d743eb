"""Options, checks and progress bars that the commands of `superdraft lab eval` and `superdraft lab tune` share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from superdraft.evaluation.decoders.decoder_spec import DecoderSpec, parse_decoder
from superdraft.server.cli.settings_options import setting
from superdraft.server.errors import CommandError

SERVED = ["served"]

Files = Annotated[list[Path] | None, typer.Option("--prompts", help="JSON lines. More files may follow.")]
MoreFiles = Annotated[list[Path] | None, typer.Argument(help="More such files.", show_default=False)]
Limit = Annotated[int | None, typer.Option(min=1, help="Maximum number of prompts, taken from the files in turns.")]
Decoders = Annotated[
    list[str],
    typer.Option(
        "--decoder",
        help="Decoder to compare: served, paper, nucleus, greedy or nucleus+superposed, optionally with a name and "
        "options: 'unhealed: served healing=off'. The first is the baseline. none: only peers. Repeatable.",
    ),
]
Peers = Annotated[
    list[str] | None, typer.Option("--peer", help="Running server to compare with, as KIND=URL. Repeatable.")
]
NumDrafts = Annotated[int, typer.Option("--num-drafts", "-k", min=1, help="Number of drafts per prompt.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=2, help="New tokens per draft.")]
Seed = Annotated[int, typer.Option(help="Seed of what is random.")]
Ngram = Annotated[str, typer.Option("--ngram", help="N-gram model: auto, none, a name or a folder.")]
Model = Annotated[str, setting("model")]
Dtype = Annotated[str, setting("dtype")]
Device = Annotated[str, setting("device")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Folder for the results, eval-COMMAND if not set. An interrupted run continues there.",
    ),
]

Advance = Callable[[str, int], None]
"""Called with a decoder's name and the number of prompts it has finished since the last call."""


def all_files(first: Sequence[Path] | None, more: Sequence[Path] | None) -> tuple[Path, ...]:
    """The files of --prompts and those after it, so that a shell pattern can name them.

    Raises:
        CommandError: there are none.
    """
    files = (*(first or ()), *(more or ()))
    if not files:
        raise CommandError("--prompts FILE is missing.")
    return files


def decoder_specs(
    texts: Sequence[str], ngram: str, shared: Mapping[str, Any], others: Sequence[str] = ()
) -> tuple[DecoderSpec, ...]:
    """The decoders of --decoder; "none" means that only the others are measured.

    Args:
        texts: values of --decoder.
        ngram: value of --ngram.
        shared: options of all decoders.
        others: names of the peers.

    Raises:
        CommandError: a value is wrong, two decoders have the same name, or there is nothing to measure.
    """
    if list(texts) == ["none"]:
        if not others:
            raise CommandError("--decoder none leaves nothing to measure; add --peer KIND=URL.")
        texts = ()
    specs = tuple(parse_decoder(text, ngram, shared) for text in texts)
    names = [*(spec.name for spec in specs), *others]
    if twice := {name for name in names if names.count(name) > 1}:
        raise CommandError(f"Two decoders are called {min(twice)!r}; name them: --decoder 'NAME: KIND option=value'.")
    return specs


@contextmanager
def progress_of(names: Sequence[str], total: int) -> Iterator[Advance]:
    """A progress bar per name, on standard error if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks = {name: progress.add_task(name, total=total) for name in names}
        yield lambda name, count: progress.advance(tasks[name], count)
