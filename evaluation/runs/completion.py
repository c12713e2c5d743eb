"""`superdraft lab eval completion`: drafts as served, after whole words and inside words."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from superdraft.decoding.loading.store import DEFAULT_MODEL
from superdraft.evaluation import options
from superdraft.evaluation.cases.prompts import Prompt, first_words_of, read_prompts
from superdraft.evaluation.cases.word_list import WordList, known_words
from superdraft.evaluation.decoders.decoders import Contender
from superdraft.evaluation.decoders.peers import SUPERDRAFT, parse_peer, served_contender
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.options import all_files, decoder_specs, options_given, progress_of
from superdraft.evaluation.reports import plots
from superdraft.evaluation.reports.figures import collect, intervals
from superdraft.evaluation.reports.machine import describe_machine
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.reports.report import (
    DecoderResult,
    decoder_result,
    markdown,
    results_document,
    summary_table,
    write_json,
)
from superdraft.evaluation.runs.quality import QualityRun, Typing
from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.errors import CommandError

NUM_SHOWN = (1, 3)
"""The k of saved@k: one draft in the text, as in editors, and a list of three."""

PLACES = ("word ends", "inside words")
COLUMNS = (
    "forward_rows",
    "request_ms",
    "exact_match_any/1",
    "words_right",
    "keystroke_savings",
    "saved_at/1",
    "saved_at/3",
    "acceptance_rate_at/1",
    "acceptance_rate_at/3",
    "saved_at_in_part/1",
    "saved_at_in_part/3",
    "acceptance_rate_at_in_part/1",
    "acceptance_rate_at_in_part/3",
    "broken_joints/first",
    "broken_joints/drafts",
    "broken_joints/any",
)
FIRST_WORDS_COLUMNS = ("forward_rows", "request_ms", "exact_match_first/1", "exact_match_any/1", "words_right")
"""Columns after the first words of texts, where no reference is typed."""


Words = Annotated[
    Path | None, typer.Option(help="Known words, one per line. If not set, those of the model's vocabulary.")
]
FirstWords = Annotated[
    str | None,
    typer.Option(
        help="N,...: use the first N words of each text as prompts, and type nothing. If not set, whole prompts."
    ),
]


def main(
    prompts: options.Files = None,
    more: options.MoreFiles = None,
    decoder: options.ServedDecoders = options.SERVED,
    peer: options.Peers = None,
    num_drafts: options.NumDrafts = 3,
    max_tokens: options.MaxTokens = 10,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    words: Words = None,
    ngram: options.Ngram = "auto",
    model: options.Model = DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    typed_words: options.TypedWords = 5,
    first_words: FirstWords = None,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    output: options.Output = None,
) -> None:
    """Measure drafts as they are served, after words and inside words, including broken words."""
    peers = [parse_peer(text, (SUPERDRAFT,)) for text in peer or ()]
    shared = options_given(num_drafts=num_drafts, max_tokens=max_tokens)
    specs = decoder_specs(decoder, ngram, shared, [one.name for one in peers])
    counts, key = _word_counts(first_words), read_key(api_key, api_key_file)
    files, folder, console = all_files(prompts, more), output or Path("eval-completion"), Console()
    placed = _placed_prompts(read_prompts(files, limit), counts)
    asked = [prompt for _, prompt in placed]
    known = None if counts else known_words(asked, words, model)
    typing = Typing(not counts, () if counts else NUM_SHOWN, typed_words or None)
    with ExitStack() as stack:
        contenders = [stack.enter_context(served_contender(one, key, num_drafts, max_tokens)) for one in peers]
        if specs:
            workbench = Workbench.of_prompts(ModelChoice(model, dtype, device), asked, specs, seed=seed)
            contenders = [*workbench.contenders(specs), *contenders]
        run = QualityRun(contenders, folder / "records", typing=typing)
        advance = stack.enter_context(progress_of([one.name for one in contenders], len(asked), console))
        records = run.run(asked, advance)
    about = {
        "files": [file.name for file in files],
        "typed_words": typed_words or None,
        "first_words": counts,
        "known_words": None if known is None else len(known),
    }
    results = _results([after_words(count) for count in counts] or PLACES, placed, contenders, records, known)
    _report(folder, about, results, FIRST_WORDS_COLUMNS if counts else COLUMNS, console)


def _word_counts(text: str | None) -> tuple[int, ...]:
    """The numbers of --first-words, without repetitions."""
    counts = [] if text is None else [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if min(counts, default=1) < 1:
        raise CommandError(f"--first-words must be numbers of at least 1, as 1,2,3; got {text!r}.")
    return tuple(dict.fromkeys(counts))


def _placed_prompts(prompts: Sequence[Prompt], counts: Sequence[int]) -> list[tuple[str, Prompt]]:
    """The place where each prompt ends, and the prompt.

    Args:
        prompts: as read.
        counts: cut the texts after their first 1, 2, ... words; empty: leave the prompts whole.

    Raises:
        CommandError: no text is longer than the first words.
    """
    if not counts:
        return [(place_of(prompt), prompt) for prompt in prompts]
    cut = [(after_words(count), prompt) for count in counts for prompt in first_words_of(prompts, count)]
    if not cut:
        raise CommandError(f"--first-words {min(counts)}: no text has more words than that.")
    return cut


def after_words(count: int) -> str:
    """The name of the place after a text's first words."""
    return f"after {count} word{'s' if count > 1 else ''}"


def place_of(prompt: Prompt) -> str:
    """The place where a prompt ends."""
    return PLACES[prompt.is_mid_word]


def _results(
    places: Sequence[str],
    placed: Sequence[tuple[str, Prompt]],
    contenders: Sequence[Contender],
    records: Mapping[str, Sequence[PromptRecord]],
    known: WordList | None,
) -> dict[str, list[DecoderResult]]:
    """The results of each decoder at the places where a prompt ends."""
    results = {}
    for place in places:
        own = [i for i, (where, _) in enumerate(placed) if where == place]
        prompts = [placed[i][1] for i in own]
        if own:
            results[place] = [
                decoder_result(one, prompts, [records[one.name][i] for i in own], partial(collect, words=known))
                for one in contenders
            ]
    return results


def _report(
    folder: Path,
    about: Mapping[str, Any],
    results: Mapping[str, Sequence[DecoderResult]],
    columns: Sequence[str],
    console: Console,
) -> None:
    """Write results.json, the tables and the plots of all places, and print the figures."""
    places = {place: results_document("completion", own, {}) for place, own in results.items()}
    write_json(
        folder / "results.json", {"command": "completion", **about, "machine": describe_machine(), "places": places}
    )
    tables = [markdown(f"Completion: {place}", own, columns) for place, own in results.items()]
    (folder / "results.md").write_text("\n".join(tables), encoding="utf-8")
    for place, own in results.items():
        found = {result.name: intervals(result.figures) for result in own}
        plots.bars(folder / f"completion_{place.replace(' ', '_')}.png", found, columns)
        console.print(f"{place}: {own[0].num_prompts} prompts")
        console.print(summary_table(own, columns))
    console.print(f"{folder / 'results.md'} has the confidence bounds, differences and domains.")
