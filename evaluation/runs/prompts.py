"""`superdraft lab eval quality` and `completion`: decoders and running servers compared on prompts with references."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from superdraft.decoding.loading.catalogue import DEFAULT_MODEL
from superdraft.evaluation import options
from superdraft.evaluation.cases.prompts import read_prompts
from superdraft.evaluation.decoders.peers import SUPERDRAFT, parse_peer, served_contender
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.options import all_files, decoder_specs
from superdraft.evaluation.reports import plots
from superdraft.evaluation.reports.report import DecoderResult, write_report
from superdraft.evaluation.runs.quality import measured
from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key

NONE = "none"
PLACES = ("word ends", "inside words")

COLUMNS = (
    "forward_rows",
    "request_ms",
    "num_drafts",
    "perplexity_best",
    "perplexity_mean",
    "exact_match_first/1",
    *(f"exact_match_any/{n}" for n in (1, 2, 3)),
    "words_right",
    "keystroke_savings",
    "distinct_starts",
    "self_bleu",
    "mean_words",
)


JudgingModel = Annotated[
    str | None,
    typer.Option(
        help="Model that judges the drafts' perplexity, or none. If not set, the drafting model; with completion none."
    ),
]
TypedWords = Annotated[int, typer.Option(min=0, help="Number of words of each reference to type; 0: all.")]


def main(
    ctx: typer.Context,
    prompts: options.Files = None,
    more: options.MoreFiles = None,
    decoder: options.Decoders = options.SERVED,
    peer: options.Peers = None,
    num_drafts: options.NumDrafts = 3,
    max_tokens: options.MaxTokens = 10,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    ngram: options.Ngram = "auto",
    model: options.Model = DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    evaluator: JudgingModel = None,
    typed_words: TypedWords = 5,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    output: options.Output = None,
) -> None:
    """Compare decoders and servers on prompts whose continuation is known.

    quality: perplexity, hits, keystrokes saved and distinctness. completion: what users see.
    """
    command = str(ctx.info_name)
    peers = [parse_peer(text, (SUPERDRAFT,)) for text in peer or ()]
    specs = decoder_specs(
        decoder, ngram, {"num_drafts": num_drafts, "max_tokens": max_tokens}, [one.name for one in peers]
    )
    key = read_key(api_key, api_key_file)
    judge = evaluator or (model if command == "quality" and specs else NONE)
    files, folder, console = all_files(prompts, more), output or Path(f"eval-{command}"), Console()
    asked = read_prompts(files, limit)
    places = {name: [one for one in asked if PLACES[one.is_mid_word] == name] for name in PLACES}
    groups = {name: own for name, own in places.items() if own}
    with ExitStack() as stack:
        contenders = [stack.enter_context(served_contender(one, key, num_drafts, max_tokens)) for one in peers]
        judging = None
        if specs:
            choice = ModelChoice(model, dtype, device, None if judge == model else judge)
            workbench = Workbench.of_prompts(choice, asked, specs, seed=seed)
            contenders = [*workbench.contenders(specs), *contenders]
            judging = None if judge == NONE else workbench.open_evaluator()
        results = measured(
            contenders,
            groups,
            folder / "records",
            evaluator=judging,
            types=True,
            max_words=typed_words or None,
            conditions={"evaluator": judge},
        )
    about = {
        "files": [file.name for file in files],
        "typed_words": typed_words or None,
        "evaluator": judge,
    }
    write_report(folder, command, results, COLUMNS, about, console)
    _plot(results, folder)


def _plot(results: Mapping[str, Sequence[DecoderResult]], folder: Path) -> None:
    """Plot hits against the rows that they cost, a point per decoder."""
    for place, own in results.items():
        points = {one.name: ([one.bounds["forward_rows"]], [one.bounds["exact_match_any/1"]]) for one in own}
        x_label = "rows of the model, in multiples of a greedy draft's"
        file = folder / f"rows_{place.replace(' ', '_')}.svg"
        plots.curves(file, points, x_label, "prompts with a right next word in a draft")
