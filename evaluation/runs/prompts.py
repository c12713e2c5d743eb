"""`superdraft lab eval quality`, `keystrokes` and `diversity`: decoders compared on prompts with references."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from superdraft.decoding.loading.store import DEFAULT_MODEL
from superdraft.evaluation import options
from superdraft.evaluation.cases.prompts import Prompt, read_prompts
from superdraft.evaluation.decoders.decoder_spec import DecoderSpec, Sweep
from superdraft.evaluation.decoders.decoders import Contender
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.measures.bootstrap import Interval
from superdraft.evaluation.options import all_files, decoder_specs, options_given, progress_of
from superdraft.evaluation.reports import plots
from superdraft.evaluation.reports.calibration import calibration
from superdraft.evaluation.reports.figures import (
    UNIQUENESS_LENGTHS,
    UNIQUENESS_ORDERS,
    intervals,
    uniqueness_name,
)
from superdraft.evaluation.reports.folder import write_report
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.reports.report import TITLES, DecoderResult, decoder_result
from superdraft.evaluation.runs.quality import QualityRun, Typing

_DRAFT_FIGURES = ("forward_rows", "mean_words")
COLUMNS = {
    "quality": (
        "forward_rows",
        "perplexity_best",
        "perplexity_mean",
        "exact_match_any/1",
        "exact_match_any/2",
        "exact_match_any/3",
        "words_right",
        "keystroke_savings",
        "distinct_starts",
        "mean_words",
    ),
    "keystrokes": (*_DRAFT_FIGURES, "keystroke_savings", "exact_match_any/1", "words_right"),
    "diversity": (*_DRAFT_FIGURES, "num_drafts", "distinct_starts", "self_bleu"),
}
"""Columns of each command's tables and bar charts; results.json has all figures."""

NUM_DRAFTS = {"quality": [3], "diversity": [3], "keystrokes": [1, 3, 5]}


NumDraftsOfCommand = Annotated[
    list[int] | None,
    typer.Option(
        "--num-drafts",
        "-k",
        min=1,
        help="Number of drafts per prompt. Repeatable. If not set, 3; with keystrokes 1, 3 and 5.",
    ),
]
Alpha = Annotated[
    float | None, typer.Option(help="Weight of the n-gram model. If not set, tuned for the n-gram model.")
]
JudgingModel = Annotated[str | None, typer.Option(help="Model that judges the drafts. If not set, the drafting model.")]
PrefixWords = Annotated[
    list[int] | None, typer.Option("--prefix-words", min=1, help="Cut prompts to their last words. Repeatable.")
]


def main(
    ctx: typer.Context,
    prompts: options.Files = None,
    more: options.MoreFiles = None,
    decoder: options.Decoders = options.DECODERS,
    num_drafts: NumDraftsOfCommand = None,
    max_tokens: options.MaxTokens = 10,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    selection: options.Selection = None,
    alpha: Alpha = None,
    tau: options.Tau = None,
    candidates_per_draft: options.Candidates = None,
    ngram: options.Ngram = "auto",
    model: options.Model = DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    evaluator: JudgingModel = None,
    prefix_words: PrefixWords = None,
    typed_words: options.TypedWords = 5,
    output: options.Output = None,
) -> None:
    """Compare decoders on prompts whose continuation is known.

    quality: perplexity, hits, keystrokes saved and distinctness. keystrokes: keystrokes saved, for several numbers of
    drafts. diversity: how much the drafts of a prompt differ, and whether a draft repeats itself.
    """
    command = str(ctx.info_name)
    shared = options_given(
        num_drafts=num_drafts or NUM_DRAFTS[command],
        max_tokens=max_tokens,
        selection=selection,
        alpha=alpha,
        tau=tau,
        candidates_per_draft=candidates_per_draft,
    )
    specs = decoder_specs(decoder, ngram, shared)
    files = all_files(prompts, more)
    prompt_sets = {length: read_prompts(files, limit, length) for length in prefix_words or (None,)}
    models = ModelChoice(model, dtype, device, evaluator)
    workbench = Workbench.of_prompts(models, list(chain(*prompt_sets.values())), specs, seed=seed)
    folder, console = output or Path(f"eval-{command}"), Console()
    results = _compare(command, workbench, specs, prompt_sets, typed_words or None, folder / "records", console)
    about = {
        "files": [file.name for file in files],
        "typed_words": typed_words or None,
        "evaluator": evaluator or "the drafting model",
    }
    title = f"{command.capitalize()} of {workbench.loaded.name}"
    write_report(folder, command, title, results, COLUMNS[command], about, console)
    _plot(command, results, folder)
    console.print(f"{folder / 'results.md'} has the confidence bounds, differences and domains.")


def _compare(
    command: str,
    workbench: Workbench,
    specs: Sequence[DecoderSpec],
    prompt_sets: Mapping[int | None, Sequence[Prompt]],
    max_words: int | None,
    records_folder: Path,
    console: Console,
) -> list[DecoderResult]:
    """The results of all decoders on each set of prompts, given by the length that prompts are cut to."""
    contenders, results = workbench.contenders(specs), []
    evaluator = workbench.open_evaluator() if command == "quality" else None
    with progress_of([one.name for one in contenders], sum(map(len, prompt_sets.values())), console) as advance:
        for length, prompts in prompt_sets.items():
            run = QualityRun(
                contenders,
                records_folder,
                evaluator=evaluator,
                typing=Typing(keys=command != "diversity", max_words=max_words),
                conditions={"evaluator": workbench.choice.evaluator, "prefix_words": length},
            )
            records = run.run(prompts, advance)
            results += [_result(command, one, prompts, records[one.name], length) for one in contenders]
    return results


def _result(
    command: str,
    contender: Contender,
    prompts: Sequence[Prompt],
    records: Sequence[PromptRecord],
    prefix_words: int | None,
) -> DecoderResult:
    """The result of one decoder on one set of prompts."""
    result = decoder_result(contender, prompts, records)
    if command == "quality" and contender.settings["params"]["selection"] == "distinct":
        result = replace(result, calibration=calibration(records, prompts))
    if prefix_words is None:
        return result
    sweep = Sweep(contender.name, "prefix_words", prefix_words)
    return replace(result, name=f"{contender.name} prefix_words={prefix_words}", sweep=sweep)


def _plot(command: str, results: Sequence[DecoderResult], folder: Path) -> None:
    """Plot the calibration, and how figures change with an option or along a draft."""
    found = {result.name: intervals(result.figures) for result in results}
    if reliable := {one.name: one.calibration for one in results if one.calibration is not None}:
        lines = {name: ([b.predicted for b in one.bins], [b.right for b in one.bins]) for name, one in reliable.items()}
        lines = {"perfect": ([0, 1], [0, 1]), **lines}
        plots.curves(folder / "reliability.png", lines, "exp(score)", "drafts whose first word is right")
        cuts = {name: ([c.shown for c in one.cuts], [c.right for c in one.cuts]) for name, one in reliable.items()}
        plots.curves(folder / "accuracy_by_score.png", cuts, "drafts shown", "right first words among them")
    if command == "quality":
        _plot_trade_off(results, found, folder)
    for name in COLUMNS[command]:
        _plot_sweep(results, found, name, folder)
    for order in UNIQUENESS_ORDERS if command == "diversity" else ():
        series = {
            label: [(float(length), figures[uniqueness_name(order, length)]) for length in UNIQUENESS_LENGTHS]
            for label, figures in found.items()
        }
        plots.lines(folder / f"uniqueness_{order}.png", series, "words of a draft", f"different {order}-grams, share")


def _plot_trade_off(
    results: Sequence[DecoderResult], found: Mapping[str, Mapping[str, Interval]], folder: Path
) -> None:
    """Plot hits against the rows that they cost, a point per decoder; a series of decoders is joined."""
    cost, gain = "forward_rows", "exact_match_any/1"
    series: dict[str, list[tuple[Interval, Interval]]] = {}
    for result in results:
        if cost in found[result.name] and gain in found[result.name]:
            label = result.name if result.sweep is None else result.sweep.series
            series.setdefault(label, []).append((found[result.name][cost], found[result.name][gain]))
    x_label = "rows of the model, in multiples of a greedy draft's"
    plots.trade_off(folder / "quality_by_rows.svg", series, x_label, "prompts with a right next word in a draft")


def _plot_sweep(
    results: Sequence[DecoderResult], found: Mapping[str, Mapping[str, Interval]], name: str, folder: Path
) -> None:
    """Plot a line per series of decoders that differ in one option."""
    series: dict[str, dict[str, list[tuple[float, Interval]]]] = {}
    for result in results:
        if result.sweep is not None and name in result.figures:
            by_option = series.setdefault(result.sweep.option, {})
            by_option.setdefault(result.sweep.series, []).append((result.sweep.value, found[result.name][name]))
    for option, lines in series.items():
        plots.lines(folder / f"{name.replace('/', '_')}_by_{option}.png", lines, option, TITLES.get(name, name))
