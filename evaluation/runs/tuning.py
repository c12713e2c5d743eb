"""The search for alpha, tau and m of a language model with an n-gram model, by successive halving."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from superdraft.benchmarks.machine import describe_machine
from superdraft.decoding.params import DEFAULT_ALPHA, DEFAULT_TAU
from superdraft.evaluation.cases.prompts import Prompt, read_prompts
from superdraft.evaluation.decoders.decoder_spec import DecoderSpec
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.measures.bootstrap import Interval, paired_difference
from superdraft.evaluation.reports import plots
from superdraft.evaluation.reports.figures import Figures, collect, intervals
from superdraft.evaluation.reports.report import TITLES, format_interval, write_json
from superdraft.evaluation.runs.commands import progress_of
from superdraft.evaluation.runs.quality import QualityRun, Typing
from superdraft.ngram_models.store.manifest import Tuning
from superdraft.server.errors import CommandError

OBJECTIVES = ("words_right", "keystroke_savings", "exact_match_any/1")
COLUMNS = (
    "words_right",
    "keystroke_savings",
    "exact_match_any/1",
    "perplexity_best",
    "perplexity_mean",
    "distinct_starts",
)
# Of the settings of one round, this share goes to the next, which has as many times the prompts.
_KEPT, _GROWTH = 1 / 3, 3
_MIN_KEPT = 4


@dataclass(frozen=True, slots=True)
class TuningJob:
    """The command.

    Attributes:
        files: of prompts.
        limit: at most so many prompts.
        models: the language models.
        ngram: the n-gram model's name, or "auto".
        num_drafts: k.
        max_tokens: new tokens of each draft.
        alphas: values to try; 0 is among them.
        taus: likewise.
        candidates: likewise, of m.
        objective: one of `OBJECTIVES`, to be made as large as possible.
        max_perplexity: the drafts' mean perplexity may be at most so many times the lowest of any setting.
        first_prompts: prompts of the first round.
        writes: put the choice into the n-gram model's manifest.
        output: folder of the results.
    """

    files: tuple[Path, ...]
    limit: int | None
    models: ModelChoice
    ngram: str
    num_drafts: int
    max_tokens: int
    alphas: tuple[float, ...]
    taus: tuple[float, ...]
    candidates: tuple[int, ...]
    objective: str
    max_perplexity: float
    first_prompts: int
    writes: bool
    output: Path


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting and what it brought on the prompts of its last round."""

    setting: Tuning
    figures: Figures
    num_prompts: int
    found: Mapping[str, Interval]

    @property
    def name(self) -> str:
        """The setting in words."""
        return name_of(self.setting)


def name_of(setting: Tuning) -> str:
    """A setting in words."""
    return f"alpha={setting.alpha:g} tau={setting.tau:g} m={setting.candidates_per_draft}"


def grid(job: TuningJob) -> list[Tuning]:
    """All settings to try, the paper's and one with alpha 0 among them; with alpha 0 they all are of one kind."""
    paper = Tuning(DEFAULT_ALPHA, DEFAULT_TAU, job.num_drafts**2)
    tried = (Tuning(*values) for values in product({0.0, *job.alphas}, job.taus, job.candidates))
    return sorted({paper, *tried}, key=lambda one: (one.alpha, one.tau, one.candidates_per_draft))


def ranked(trials: Sequence[Trial], objective: str, max_perplexity: float) -> list[Trial]:
    """Best first: those within the bound by the objective, then by mean perplexity; the others after them."""
    perplexities = {trial.name: trial.found["perplexity_mean"].value for trial in trials}
    bound = max_perplexity * min(perplexities.values())

    def key(trial: Trial) -> tuple[bool, float, float]:
        perplexity = perplexities[trial.name]
        is_over = not perplexity <= bound
        return is_over, 0.0 if is_over else -trial.found[objective].value, perplexity

    return sorted(trials, key=key)


def search(
    settings: Sequence[Tuning],
    num_prompts: int,
    first_prompts: int,
    measure: Callable[[Sequence[Tuning], int], list[Trial]],
    rank: Callable[[Sequence[Trial]], list[Trial]],
) -> tuple[list[Trial], list[Trial]]:
    """Successive halving (Jamieson and Talwalkar, 2016): many settings on few prompts, the best of them on more.

    The best setting with alpha 0 and the paper's are always kept, so that the last round can tell what was won.

    Args:
        settings: to begin with.
        num_prompts: of the last round.
        first_prompts: of the first.
        measure: runs settings on the first n prompts.
        rank: puts trials in order, best first.

    Returns:
        The trials of the last round, best first, and those that were left behind.
    """
    left_behind: list[Trial] = []
    size = min(first_prompts, num_prompts)
    while True:
        trials = rank(measure(settings, size))
        if size == num_prompts:
            return trials, left_behind
        num_kept = max(_MIN_KEPT, round(len(trials) * _KEPT))
        without_ngram = next(trial for trial in trials if trial.setting.alpha == 0)
        paper = next(t for t in trials if (t.setting.alpha, t.setting.tau) == (DEFAULT_ALPHA, DEFAULT_TAU))
        kept = {trial.name: trial for trial in (*trials[:num_kept], without_ngram, paper)}
        left_behind += [trial for trial in trials if trial.name not in kept]
        settings = [trial.setting for trial in kept.values()]
        size = min(size * _GROWTH, num_prompts)


def run_tuning_job(job: TuningJob, console: Console) -> None:
    """Search, report, and write the choice if that was asked for.

    Raises:
        CommandError: a file or an option is wrong.
        NgramModelError: the n-gram model cannot be used.
    """
    prompts = read_prompts(job.files, job.limit)
    if not prompts:
        raise CommandError("The files hold no prompts.")
    bench = Workbench(job.models, [one.text + one.continuation for one in prompts], [_spec(s, job) for s in grid(job)])
    model = bench.ngram_models.model(job.ngram)
    if model is None:
        raise CommandError(f"--ngram {job.ngram!r} is no n-gram model that could be tuned. superdraft ngram list.")

    def measure(settings: Sequence[Tuning], size: int) -> list[Trial]:
        return _measure(job, bench, settings, prompts[:size], console)

    def rank(trials: Sequence[Trial]) -> list[Trial]:
        return ranked(trials, job.objective, job.max_perplexity)

    finalists, others = search(grid(job), len(prompts), job.first_prompts, measure, rank)
    _report(job, finalists, others, model.manifest.name, console)
    if job.writes:
        replace(model.manifest, tuning=finalists[0].setting).write(model.folder)
        console.print(f"Written to {model.folder}.")


def _spec(setting: Tuning, job: TuningJob) -> DecoderSpec:
    options = {"num_drafts": job.num_drafts, "max_tokens": job.max_tokens, **asdict(setting)}
    return DecoderSpec(name_of(setting), "paper", job.ngram if setting.alpha else "none", tuple(options.items()))


def _measure(
    job: TuningJob, bench: Workbench, settings: Sequence[Tuning], prompts: Sequence[Prompt], console: Console
) -> list[Trial]:
    specs = [_spec(setting, job) for setting in settings]
    run = QualityRun(
        bench.contenders(specs),
        job.output / "records",
        evaluator=bench.open_evaluator(),
        typing=Typing(keys=job.objective == "keystroke_savings"),
    )
    label = f"{len(specs)} settings, {len(prompts)} prompts"
    with progress_of([label], len(specs) * len(prompts), console) as advance:
        records = run.run(prompts, lambda _, count: advance(label, count))
    trials = []
    for setting, spec in zip(settings, specs, strict=True):
        figures = collect(records[spec.name], prompts, job.max_tokens - 1)
        trials.append(Trial(setting, figures, len(prompts), intervals(figures)))
    return trials


def _report(
    job: TuningJob, finalists: Sequence[Trial], others: Sequence[Trial], ngram_model: str, console: Console
) -> None:
    """tuning.json, tuning.md, a plot, and the choice on the terminal."""
    best = finalists[0]
    without_ngram = next(trial for trial in finalists if trial.setting.alpha == 0)
    columns = [name for name in COLUMNS if name in best.found]
    won = {name: paired_difference(best.figures[name], without_ngram.figures[name]) for name in columns}
    document: dict[str, Any] = {
        "model": job.models.model,
        "ngram_model": ngram_model,
        "choice": asdict(best.setting),
        "objective": job.objective,
        "max_perplexity": job.max_perplexity,
        "files": [file.name for file in job.files],
        "num_prompts": best.num_prompts,
        "difference_to_best_alpha_0": {name: asdict(one) for name, one in won.items()},
        "trials": [_row(trial, columns) for trial in (*finalists, *others)],
        "machine": describe_machine(),
    }
    write_json(job.output / "tuning.json", document)
    head = ["setting", *(TITLES[name] for name in columns)]
    rows = [[trial.name, *(format_interval(trial.found[name]) for name in columns)] for trial in finalists]
    rows.append([f"best less {without_ngram.name}", *(format_interval(won[name]) for name in columns)])
    lines = [head, ["---"] * len(head), *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    title = f"# Tuning of {job.models.model} with {ngram_model}"
    about = (
        f"Best first by {TITLES[job.objective]}, among those whose mean perplexity is at most {job.max_perplexity:g} "
        f"times the lowest; the last round, {best.num_prompts} prompts."
    )
    (job.output / "tuning.md").write_text(f"{title}\n\n{about}\n\n{text}\n", encoding="utf-8")
    points = [
        (trial.found["perplexity_mean"].value, trial.found[job.objective].value, trial.setting.alpha)
        for trial in (*others, *finalists)
    ]
    plots.scatter(job.output / "tuning.png", points, ("mean ppl", TITLES[job.objective], "alpha"), len(finalists))
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"Choice: {best.name}")


def _row(trial: Trial, columns: Sequence[str]) -> dict[str, Any]:
    values = {name: asdict(trial.found[name]) for name in columns}
    return {**asdict(trial.setting), "num_prompts": trial.num_prompts, **values}
