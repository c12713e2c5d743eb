"""What the commands on prompts do: read, decode, measure, write results.json, the tables and the plots."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from superdraft.benchmarks.machine import describe_machine
from superdraft.evaluation.cases.prompts import Prompt, read_prompts
from superdraft.evaluation.decoders.decoder_spec import DecoderSpec, Sweep
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.measures.bootstrap import Interval
from superdraft.evaluation.reports import plots
from superdraft.evaluation.reports.calibration import calibration
from superdraft.evaluation.reports.figures import (
    UNIQUENESS_LENGTHS,
    UNIQUENESS_ORDERS,
    collect,
    intervals,
    uniqueness_name,
)
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.reports.report import (
    TITLES,
    DecoderResult,
    markdown,
    results_document,
    summary_table,
    write_json,
)
from superdraft.evaluation.runs.quality import Advance, QualityRun, Typing
from superdraft.server.errors import CommandError

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
"""What the tables and bars of each command show; results.json has all that was measured."""


@dataclass(frozen=True, slots=True)
class PromptJob:
    """A command on prompts.

    Attributes:
        command: one of `COLUMNS`.
        files: of prompts.
        limit: at most so many prompts.
        prefix_words: prompts are cut to their last words, to each of these lengths in turn; none: they are left whole.
        models: the language models.
        decoders: what is compared, the baseline first.
        typed_words: words of each reference that are typed; None: all.
        seed: of the sampling decoders.
        output: folder of the results.
    """

    command: str
    files: tuple[Path, ...]
    limit: int | None
    prefix_words: tuple[int, ...]
    models: ModelChoice
    decoders: tuple[DecoderSpec, ...]
    typed_words: int | None
    seed: int
    output: Path


def run_prompt_job(job: PromptJob, console: Console) -> None:
    """Decode, measure and write everything to the job's folder.

    Raises:
        CommandError: a file or an option is wrong.
    """
    check_names([spec.name for spec in job.decoders])
    prompt_sets = {length: _read(job, length) for length in job.prefix_words or (None,)}
    texts = [prompt.text + prompt.continuation for prompts in prompt_sets.values() for prompt in prompts]
    domains = list(dict.fromkeys(prompt.domain for prompts in prompt_sets.values() for prompt in prompts))
    workbench = Workbench(job.models, texts, job.decoders, seed=job.seed, domains=domains)
    total = sum(map(len, prompt_sets.values()))
    results: list[DecoderResult] = []
    with progress_of([spec.name for spec in job.decoders], total, console) as advance:
        for length, prompts in prompt_sets.items():
            results += _run(job, workbench, prompts, length, advance)
    about = {
        "files": [file.name for file in job.files],
        "typed_words": job.typed_words,
        "evaluator": job.models.evaluator or "the drafting model",
        "machine": describe_machine(),
    }
    write_json(job.output / "results.json", results_document(job.command, results, about))
    table = markdown(f"{job.command.capitalize()} of {workbench.loaded.name}", results, COLUMNS[job.command])
    (job.output / "results.md").write_text(table, encoding="utf-8")
    _plot(job.command, results, job.output)
    console.print(summary_table(results, COLUMNS[job.command]))
    console.print(f"{job.output / 'results.md'} has the confidence bounds, differences and domains.")


def _read(job: PromptJob, prefix_words: int | None) -> list[Prompt]:
    prompts = read_prompts(job.files, job.limit, prefix_words)
    if not prompts:
        raise CommandError("The files hold no prompts.")
    return prompts


def check_names(names: Sequence[str]) -> None:
    """Decoders are told apart by their names."""
    if twice := {name for name in names if names.count(name) > 1}:
        raise CommandError(f"Two decoders are called {min(twice)!r}; name them: --decoder 'NAME: KIND option=value'.")


@contextmanager
def progress_of(names: Sequence[str], total: int, console: Console) -> Iterator[Advance]:
    """A progress bar for each name, on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not console.is_terminal) as progress:
        tasks = {name: progress.add_task(name, total=total) for name in names}
        yield lambda name, count: progress.advance(tasks[name], count)


def _run(
    job: PromptJob, workbench: Workbench, prompts: Sequence[Prompt], prefix_words: int | None, advance: Advance
) -> list[DecoderResult]:
    """The results of all decoders on one set of prompts."""
    run = QualityRun(
        workbench.contenders(job.decoders),
        job.output / "records",
        evaluator=workbench.open_evaluator() if job.command == "quality" else None,
        typing=Typing(keys=job.command != "diversity", max_words=job.typed_words),
        conditions={"evaluator": job.models.evaluator, "prefix_words": prefix_words},
    )
    records = run.run(prompts, advance)
    results = []
    for spec in job.decoders:
        result = _result(workbench, spec, prompts, records[spec.name])
        if job.command == "quality" and workbench.params(spec).selection == "distinct":
            result = replace(result, calibration=calibration(records[spec.name], prompts))
        if prefix_words is not None:
            sweep = Sweep(spec.name, "prefix_words", prefix_words)
            result = replace(result, name=f"{spec.name} prefix_words={prefix_words}", sweep=sweep)
        results.append(result)
    return results


def _result(
    workbench: Workbench, spec: DecoderSpec, prompts: Sequence[Prompt], records: Sequence[PromptRecord]
) -> DecoderResult:
    settings = workbench.settings(spec)
    num_steps = settings["params"]["max_tokens"] - 1
    domains = {}
    for domain in dict.fromkeys(prompt.domain for prompt in prompts):
        own = [(record, prompt) for record, prompt in zip(records, prompts, strict=True) if prompt.domain == domain]
        domains[domain] = collect([record for record, _ in own], [prompt for _, prompt in own], num_steps)
    return DecoderResult(
        spec.name,
        collect(records, prompts, num_steps),
        wall_s=round(sum(record.wall_s for record in records), 3),
        settings=settings,
        domains=domains,
        sweep=spec.sweep,
    )


def _plot(command: str, results: Sequence[DecoderResult], folder: Path) -> None:
    found = {result.name: intervals(result.figures) for result in results}
    plots.bars(folder / f"{command}.png", found, COLUMNS[command])
    if reliable := {one.name: one.calibration for one in results if one.calibration is not None}:
        lines = {name: ([b.predicted for b in one.bins], [b.right for b in one.bins]) for name, one in reliable.items()}
        lines = {"perfect": ([0, 1], [0, 1]), **lines}
        plots.curves(folder / "reliability.png", lines, "exp(score)", "drafts whose first word is right")
        cuts = {name: ([c.shown for c in one.cuts], [c.right for c in one.cuts]) for name, one in reliable.items()}
        plots.curves(folder / "accuracy_by_score.png", cuts, "drafts shown", "right first words among them")
    for name in COLUMNS[command]:
        _plot_sweep(results, found, name, folder)
    for order in UNIQUENESS_ORDERS if command == "diversity" else ():
        series = {
            label: [(float(length), figures[uniqueness_name(order, length)]) for length in UNIQUENESS_LENGTHS]
            for label, figures in found.items()
        }
        plots.lines(folder / f"uniqueness_{order}.png", series, "words of a draft", f"different {order}-grams, share")


def _plot_sweep(
    results: Sequence[DecoderResult], found: Mapping[str, Mapping[str, Interval]], name: str, folder: Path
) -> None:
    """One line for each series of decoders that differ in one option."""
    series: dict[str, dict[str, list[tuple[float, Interval]]]] = {}
    for result in results:
        if result.sweep is not None and name in result.figures:
            by_option = series.setdefault(result.sweep.option, {})
            by_option.setdefault(result.sweep.series, []).append((result.sweep.value, found[result.name][name]))
    for option, lines in series.items():
        plots.lines(folder / f"{name.replace('/', '_')}_by_{option}.png", lines, option, TITLES.get(name, name))
