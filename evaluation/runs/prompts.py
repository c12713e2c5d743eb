"""`superdraft lab eval quality` and `completion`: decoders and running servers compared on prompts with references."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from superdraft.decoding.loading.store import DEFAULT_MODEL
from superdraft.evaluation import options
from superdraft.evaluation.cases.prompts import Prompt, first_words_of, read_prompts
from superdraft.evaluation.cases.word_list import known_words
from superdraft.evaluation.decoders.peers import SUPERDRAFT, parse_peer, served_contender
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.measures.typing_simulation import LIST, Rule
from superdraft.evaluation.options import all_files, decoder_specs
from superdraft.evaluation.reports import plots
from superdraft.evaluation.reports.figures import collect
from superdraft.evaluation.reports.report import DecoderResult, write_report
from superdraft.evaluation.runs.quality import NO_TYPING, Typing, measured
from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.errors import CommandError

NONE = "none"
PLACES = ("word ends", "inside words")
RULES = {"quality": (LIST,), "completion": (LIST, *(Rule(k, in_part) for in_part in (False, True) for k in (1, 3)))}
"""How references are typed: one draft in the text, as in editors, and a list of three, by saved@k."""

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
    *(f"{figure}/{rule.name}" for figure in ("saved_at", "acceptance_rate_at") for rule in RULES["completion"][1:]),
    *(f"broken_joints/{of}" for of in ("first", "drafts", "any")),
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
Words = Annotated[
    Path | None,
    typer.Option(help="completion: known words, one per line. If not set, those of the model's vocabulary."),
]
FirstWords = Annotated[
    str | None,
    typer.Option(
        help="N,...: use the first N words of each text as prompts, and type nothing. If not set, whole prompts."
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
    words: Words = None,
    typed_words: TypedWords = 5,
    first_words: FirstWords = None,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    output: options.Output = None,
) -> None:
    """Compare decoders and servers on prompts whose continuation is known.

    quality: perplexity, hits, keystrokes saved and distinctness. completion: what users see, broken words included.
    """
    command = str(ctx.info_name)
    peers = [parse_peer(text, (SUPERDRAFT,)) for text in peer or ()]
    specs = decoder_specs(
        decoder, ngram, {"num_drafts": num_drafts, "max_tokens": max_tokens}, [one.name for one in peers]
    )
    counts, key = _word_counts(first_words), read_key(api_key, api_key_file)
    judge = evaluator or (model if command == "quality" and specs else NONE)
    files, folder, console = all_files(prompts, more), output or Path(f"eval-{command}"), Console()
    groups = _groups(read_prompts(files, limit), counts)
    asked = [prompt for own in groups.values() for prompt in own]
    known = known_words(asked, words, model) if command == "completion" and not counts else None
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
            typing=NO_TYPING if counts else Typing(RULES[command], typed_words or None),
            conditions={"evaluator": judge},
            figures=partial(collect, words=known),
        )
    about = {
        "files": [file.name for file in files],
        "typed_words": typed_words or None,
        "evaluator": judge,
        "known_words": None if known is None else len(known),
    }
    write_report(folder, command, results, COLUMNS, about, console)
    _plot(results, folder)


def _word_counts(text: str | None) -> tuple[int, ...]:
    """The numbers of --first-words, without repetitions."""
    counts = [] if text is None else [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if min(counts, default=1) < 1:
        raise CommandError(f"--first-words must be numbers of at least 1, as 1,2,3; got {text!r}.")
    return tuple(dict.fromkeys(counts))


def _groups(prompts: Sequence[Prompt], counts: Sequence[int]) -> dict[str, list[Prompt]]:
    """The prompts by the place where they end.

    Args:
        prompts: as read.
        counts: cut the texts after their first 1, 2, ... words; empty: leave the prompts whole.

    Raises:
        CommandError: no text is longer than the first words.
    """
    if counts:
        groups = {f"after {n} word{'s' if n > 1 else ''}": first_words_of(prompts, n) for n in counts}
    else:
        groups = {name: [one for one in prompts if PLACES[one.is_mid_word] == name] for name in PLACES}
    found = {name: own for name, own in groups.items() if own}
    if not found:
        raise CommandError(f"--first-words {min(counts)}: no text has more words than that.")
    return found


def _plot(results: Mapping[str, Sequence[DecoderResult]], folder: Path) -> None:
    """Plot hits against the rows that they cost, a point per decoder; a series of decoders is joined."""
    for place, own in results.items():
        series: dict[str, list[DecoderResult]] = {}
        for result in own:
            series.setdefault(result.contender.series or result.name, []).append(result)
        points = {}
        for name, members in series.items():
            pairs = [(one.bounds["forward_rows"], one.bounds["exact_match_any/1"]) for one in members]
            xs, ys = zip(*sorted(pairs, key=lambda pair: pair[0].value), strict=True)
            points[name] = (xs, ys)
        x_label = "rows of the model, in multiples of a greedy draft's"
        file = folder / f"rows_{place.replace(' ', '_')}.svg"
        plots.curves(file, points, x_label, "prompts with a right next word in a draft")
