"""Options that the commands of `superdraft eval` share."""

from pathlib import Path
from typing import Annotated

import typer

from superdraft.server.errors import CommandError

Files = Annotated[
    list[Path] | None, typer.Option("--prompts", help="JSON lines with prompt and reference; several files may follow.")
]
QuestionFiles = Annotated[
    list[Path] | None, typer.Option("--prompts", help="JSON lines with question and answers; several may follow.")
]
MoreFiles = Annotated[list[Path] | None, typer.Argument(help="More such files.", show_default=False)]
Decoders = Annotated[
    list[str] | None,
    typer.Option(
        "--decoder",
        help="served, paper, nucleus, greedy, beam or nucleus+superposed; repeatable; the first is the baseline. With "
        "a name and options: 'unhealed: served healing=off k=1,3'.  [default: greedy, served, nucleus]",
    ),
]
NumDrafts = Annotated[
    list[int] | None, typer.Option("--num-drafts", "-k", min=1, help="Drafts of a prompt. Repeatable.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", min=2, help="New tokens of each draft.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many prompts, from the files in turns.")]
Seed = Annotated[int, typer.Option(help="Of the sampling decoders.")]
Selection = Annotated[str | None, typer.Option(help="The rule that picks the drafts.  [default: the decoder's]")]
Alpha = Annotated[float | None, typer.Option(help="The n-gram model's weight.  [default: tuned for it]")]
Tau = Annotated[float | None, typer.Option(help="The temperature.  [default: tuned for the n-gram model]")]
Candidates = Annotated[
    int | None, typer.Option("--candidates-per-draft", "-m", min=1, help="m.  [default: tuned, else k squared]")
]
Ngram = Annotated[str, typer.Option("--ngram", help="auto, none, a name, or a mixture a=0.7,b=0.3.")]
Model = Annotated[str, typer.Option(help="As in serve.")]
Dtype = Annotated[str, typer.Option(help="As in serve.")]
Device = Annotated[str, typer.Option(help="As in serve.")]
Evaluator = Annotated[str | None, typer.Option(help="A model that judges.  [default: the drafting model]")]
Prefix = Annotated[
    list[int] | None, typer.Option("--prefix-words", min=1, help="Cut prompts to their last words. Repeatable.")
]
TypedWords = Annotated[int, typer.Option(min=0, help="Words of each reference that are typed; 0: all.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Folder of the results; an interrupted run goes on there.  [default: eval-...]"
    ),
]
Peers = Annotated[
    list[str] | None, typer.Option("--peer", help="A running server beside them, as KIND=URL. Repeatable.")
]


def decoders_beside(given: list[str] | None, peers: list[str] | None) -> list[str]:
    """The decoders on this machine: what is served unless others are named; "none" leaves the peers alone.

    Raises:
        CommandError: there are neither.
    """
    if given == ["none"] and not peers:
        raise CommandError("--decoder none leaves nothing to measure; add --peer KIND=URL.")
    return [] if given == ["none"] else given or ["served"]


ContextLines = Annotated[
    str | None,
    typer.Option(help="BEFORE,AFTER: keep only so many lines before and after the cursor's, as 50,20.  [default: all]"),
]
