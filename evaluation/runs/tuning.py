"""`superdraft lab tune`: search for alpha, tau and m of two models, by successive halving."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from superdraft.decoding.loading.catalogue import DEFAULT_MODEL
from superdraft.decoding.params import DEFAULT_ALPHA, DEFAULT_TAU
from superdraft.evaluation import options
from superdraft.evaluation.cases.prompts import Prompt, read_prompts
from superdraft.evaluation.decoders.decoder_spec import DecoderSpec
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.measures.bootstrap import Interval, paired_difference
from superdraft.evaluation.options import all_files
from superdraft.evaluation.reports.figures import Figures
from superdraft.evaluation.reports.machine import describe_machine
from superdraft.evaluation.reports.report import write_json
from superdraft.evaluation.reports.tables import format_interval, markdown_table
from superdraft.evaluation.runs.display_tuning import tune_display
from superdraft.evaluation.runs.quality import measured
from superdraft.ngram_models.store.manifest import Tuning
from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
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
# The share of a round's settings that goes to the next round, and the growth of its number of prompts.
_KEPT, _GROWTH = 1 / 3, 3
_MIN_KEPT = 4


@dataclass(frozen=True, slots=True)
class _Request:
    """The part of a request that all trials share: the n-gram model's name, k, and new tokens per draft."""

    ngram: str
    num_drafts: int
    max_tokens: int

    def spec(self, setting: Tuning) -> DecoderSpec:
        """The decoder with a setting."""
        fields = {"num_drafts": self.num_drafts, "max_tokens": self.max_tokens, **asdict(setting)}
        return DecoderSpec(name_of(setting), "paper", self.ngram if setting.alpha else "none", tuple(fields.items()))


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting and its results on the prompts of its last round."""

    setting: Tuning
    figures: Figures
    num_prompts: int
    found: Mapping[str, Interval]

    @property
    def name(self) -> str:
        """The setting as text."""
        return name_of(self.setting)


def name_of(setting: Tuning) -> str:
    """A setting as text."""
    return f"alpha={setting.alpha:g} tau={setting.tau:g} m={setting.candidates_per_draft}"


Alphas = Annotated[str, typer.Option(help="Values of alpha to try, besides 0.")]
Taus = Annotated[str, typer.Option(help="Values of tau to try.")]
Candidates = Annotated[
    str,
    typer.Option(
        "--candidates-per-draft",
        "-m",
        help="Values of m to try.",
        show_default="k, k squared, 4 k squared",
    ),
]
Objective = Annotated[
    str, typer.Option(help="Figure to maximise: words_right, keystroke_savings or exact_match_any/1.")
]
Display = Annotated[
    bool, typer.Option("--display", help="Tune --min-probability-shown instead, of the running server --peer.")
]
Events = Annotated[Path | None, typer.Option(help="With --display: what users did, as recorded with --feedback-file.")]
LookCost = Annotated[float, typer.Option(min=0, help="With --display: keys that a look at a draft costs.")]
MaxPerplexity = Annotated[
    float, typer.Option(min=1, help="Maximum mean perplexity, relative to the lowest of any setting.")
]


def main(
    prompts: options.Files = None,
    more: options.MoreFiles = None,
    ngram: Annotated[str, typer.Option("--ngram", help="N-gram model: auto, a name or a folder.")] = "auto",
    num_drafts: options.NumDrafts = 3,
    max_tokens: options.MaxTokens = 10,
    alpha: Alphas = "0.1,0.2,0.3,0.4,0.5,0.6,0.7",
    tau: Taus = "0.06,0.1,0.2,0.3,0.5,0.8,1.2",
    candidates_per_draft: Candidates = "",
    objective: Objective = "words_right",
    max_perplexity: MaxPerplexity = 1.25,
    first_prompts: Annotated[int, typer.Option(min=1, help="Number of prompts in the first round.")] = 60,
    limit: options.Limit = None,
    model: options.Model = DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    write: Annotated[
        bool, typer.Option("--write", help="Write the best setting into the n-gram model's manifest.")
    ] = False,
    display: Display = False,
    peer: options.Peers = None,
    events: Events = None,
    look_cost: LookCost = 1.0,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("tuning"),
) -> None:
    """Find the best settings on some prompts. An interrupted search continues where it stopped."""
    if display:
        files, key = (*(prompts or ()), *(more or ())), read_key(api_key, api_key_file)
        tune_display(files, limit, peer or (), events, (num_drafts, max_tokens), look_cost, key, output)
        return
    if objective not in OBJECTIVES:
        raise CommandError(f"--objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}.")
    settings = _grid_of_options(alpha, tau, candidates_per_draft, num_drafts)
    files, request, console = all_files(prompts, more), _Request(ngram, num_drafts, max_tokens), Console()
    read = read_prompts(files, limit)
    models = ModelChoice(model, dtype, device)
    bench = Workbench.of_prompts(models, read, [request.spec(setting) for setting in settings])
    ngram_model = bench.ngram_models.model(ngram)
    if ngram_model is None:
        raise CommandError(f"--ngram {ngram!r} is not an n-gram model that can be tuned. See superdraft ngram list.")
    measure = partial(_measure, bench, request, read, objective == "keystroke_savings", output / "records")
    rank = partial(ranked, objective=objective, max_perplexity=max_perplexity)
    finalists, others = search(settings, len(read), first_prompts, measure, rank)
    about = {
        "model": model,
        "ngram_model": ngram_model.manifest.name,
        "objective": objective,
        "max_perplexity": max_perplexity,
        "files": [file.name for file in files],
    }
    _report(output, about, finalists, others, console)
    if write:
        replace(ngram_model.manifest, tuning=finalists[0].setting).write(ngram_model.folder)
        console.print(f"Written to {ngram_model.folder}.")


def _grid_of_options(alpha: str, tau: str, candidates_per_draft: str, num_drafts: int) -> list[Tuning]:
    candidates = candidates_per_draft or f"{num_drafts},{num_drafts**2},{4 * num_drafts**2}"
    return grid(
        _numbers("--alpha", alpha),
        _numbers("--tau", tau),
        [int(value) for value in _numbers("--candidates-per-draft", candidates)],
        num_drafts,
    )


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise CommandError(f"{flag} must be numbers with commas between them, got {text!r}.") from None


def grid(alphas: Sequence[float], taus: Sequence[float], candidates: Sequence[int], num_drafts: int) -> list[Tuning]:
    """All settings to try, including the paper's and alpha 0."""
    paper = Tuning(DEFAULT_ALPHA, DEFAULT_TAU, num_drafts**2)
    tried = (Tuning(*values) for values in product({0.0, *alphas}, taus, candidates))
    return sorted({paper, *tried}, key=lambda one: (one.alpha, one.tau, one.candidates_per_draft))


def ranked(trials: Sequence[Trial], objective: str, max_perplexity: float) -> list[Trial]:
    """The trials, best first: those within the bound by objective and mean perplexity, then the others."""
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

    The best setting with alpha 0 and the paper's are always kept, so that the last round can show the gain.

    Args:
        settings: settings of the first round.
        num_prompts: number of prompts in the last round.
        first_prompts: number of prompts in the first round.
        measure: runs settings on the first n prompts.
        rank: sorts trials, best first.

    Returns:
        The trials of the last round, best first, and the trials that were dropped before it.
    """
    dropped: list[Trial] = []
    size = min(first_prompts, num_prompts)
    while True:
        trials = rank(measure(settings, size))
        if size == num_prompts:
            return trials, dropped
        num_kept = max(_MIN_KEPT, round(len(trials) * _KEPT))
        without_ngram = next(trial for trial in trials if trial.setting.alpha == 0)
        paper = next(t for t in trials if (t.setting.alpha, t.setting.tau) == (DEFAULT_ALPHA, DEFAULT_TAU))
        kept = {trial.name: trial for trial in (*trials[:num_kept], without_ngram, paper)}
        dropped += [trial for trial in trials if trial.name not in kept]
        settings = [trial.setting for trial in kept.values()]
        size = min(size * _GROWTH, num_prompts)


def _measure(
    bench: Workbench,
    request: _Request,
    all_prompts: Sequence[Prompt],
    types: bool,
    folder: Path,
    settings: Sequence[Tuning],
    num_prompts: int,
) -> list[Trial]:
    """Run settings on the first prompts."""
    groups = {"prompts": all_prompts[:num_prompts]}
    contenders = bench.contenders([request.spec(setting) for setting in settings])
    (results,) = measured(contenders, groups, folder, evaluator=bench.open_evaluator(), types=types).values()
    return [
        Trial(setting, one.figures, num_prompts, one.bounds) for setting, one in zip(settings, results, strict=True)
    ]


def _report(
    folder: Path, about: Mapping[str, Any], finalists: Sequence[Trial], others: Sequence[Trial], console: Console
) -> None:
    """Write tuning.json and tuning.md, and print the choice."""
    best, objective = finalists[0], about["objective"]
    without_ngram = next(trial for trial in finalists if trial.setting.alpha == 0)
    columns = [name for name in COLUMNS if name in best.found]
    gains = {name: paired_difference(best.figures[name], without_ngram.figures[name]) for name in columns}
    document = {
        **about,
        "choice": asdict(best.setting),
        "num_prompts": best.num_prompts,
        "difference_to_best_alpha_0": {name: asdict(one) for name, one in gains.items()},
        "trials": [_row(trial, columns) for trial in (*finalists, *others)],
        "machine": describe_machine(),
    }
    write_json(folder / "tuning.json", document)
    rows = [[trial.name, *(format_interval(trial.found[name]) for name in columns)] for trial in finalists]
    rows.append([f"best minus {without_ngram.name}", *(format_interval(gains[name]) for name in columns)])
    table = markdown_table(["setting", *columns], rows)
    title = f"# Tuning of {about['model']} with {about['ngram_model']}"
    explanation = (
        f"Best first by {objective}, among the settings whose mean perplexity is at most "
        f"{about['max_perplexity']:g} times the lowest; last round, {best.num_prompts} prompts."
    )
    (folder / "tuning.md").write_text(f"{title}\n\n{explanation}\n\n{table}\n", encoding="utf-8")
    console.print(table, soft_wrap=True)
    console.print(f"Choice: {best.name}")


def _row(trial: Trial, columns: Sequence[str]) -> dict[str, Any]:
    values = {name: asdict(trial.found[name]) for name in columns}
    return {**asdict(trial.setting), "num_prompts": trial.num_prompts, **values}
