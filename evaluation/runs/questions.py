"""`superdraft lab eval qa` and `coverage`: how often drafts answer questions, and how reliable their scores are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from superdraft.decoding.loading.store import DEFAULT_MODEL
from superdraft.evaluation import options
from superdraft.evaluation.cases.prompts import Prompt, Question, read_questions
from superdraft.evaluation.decoders.decoders import Contender
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.measures.bootstrap import as_ratios
from superdraft.evaluation.measures.metrics import contains_answer, coverage_accuracy, precision_at
from superdraft.evaluation.options import all_files, decoder_specs, options_given, progress_of
from superdraft.evaluation.reports import plots
from superdraft.evaluation.reports.figures import Figures, forward_rows
from superdraft.evaluation.reports.folder import write_report
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.reports.report import DecoderResult, total_wall_s
from superdraft.evaluation.runs.quality import QualityRun, Typing

RANKS = (1, 2, 3)
COVERAGE_DECODERS = ["nucleus", "nucleus+superposed"]
DRAFTS_PER_ROW = 3  # coverage: of each sampled row that Superposed Decoding continues
COLUMNS = {
    "qa": ("forward_rows", "precision/1", "precision/2", "precision/3", "num_drafts"),
    "coverage": ("forward_rows", "precision/1", "coverage", "num_drafts"),
}


QuestionDecoders = Annotated[
    list[str] | None,
    typer.Option(
        "--decoder",
        help="Decoder, as in superdraft lab eval quality. Repeatable. If not set, greedy, served and nucleus; with "
        "coverage nucleus and nucleus+superposed.",
    ),
]
NumDraftsOfCommand = Annotated[
    int | None,
    typer.Option(
        "--num-drafts",
        "-k",
        min=1,
        help="qa: number of drafts per question, 3 if not set. coverage: number of sampled rows, 100 if not set.",
    ),
]


def main(
    ctx: typer.Context,
    prompts: options.QuestionFiles = None,
    more: options.MoreFiles = None,
    decoder: QuestionDecoders = None,
    num_drafts: NumDraftsOfCommand = None,
    max_tokens: options.MaxTokens = 10,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    selection: options.Selection = None,
    alpha: Annotated[float, typer.Option(help="Weight of the n-gram model.")] = 0.0,
    tau: options.Tau = None,
    candidates_per_draft: options.Candidates = None,
    ngram: options.Ngram = "auto",
    model: options.Model = DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    output: options.Output = None,
) -> None:
    """Measure how often drafts answer questions.

    qa: P@1, P@2 and P@3. coverage: how often one of many drafts answers, and how reliable scores are.
    """
    command = str(ctx.info_name)
    is_coverage = command == "coverage"
    shared = options_given(
        num_drafts=DRAFTS_PER_ROW if is_coverage else num_drafts or 3,
        num_branches=num_drafts or 100 if is_coverage else None,
        max_tokens=max_tokens,
        selection=selection,
        alpha=alpha,
        tau=tau,
        candidates_per_draft=candidates_per_draft,
    )
    specs = decoder_specs(decoder or (COVERAGE_DECODERS if is_coverage else options.DECODERS), ngram, shared)
    files, folder, console = all_files(prompts, more), output or Path(f"eval-{command}"), Console()
    questions = read_questions(files, limit)
    texts = [question.prompt for question in questions]
    workbench = Workbench(ModelChoice(model, dtype, device), texts, specs, seed=seed)
    contenders = workbench.contenders(specs)
    records = _ask(contenders, questions, folder / "records", console)
    results = [_result(one, records[one.name], questions) for one in contenders]
    about = {"files": [file.name for file in files]}
    title = f"{command.capitalize()} of {workbench.loaded.name}"
    write_report(folder, command, title, results, COLUMNS[command], about, console)
    _plot_curves(folder, records, questions)


def _ask(
    contenders: Sequence[Contender], questions: Sequence[Question], records_folder: Path, console: Console
) -> dict[str, list[PromptRecord]]:
    """The records of each decoder, in the order of the questions."""
    prompts = [Prompt(one.id, "questions", one.prompt, one.answers[0]) for one in questions]
    run = QualityRun(contenders, records_folder, typing=Typing(keys=False))
    with progress_of([one.name for one in contenders], len(prompts), console) as advance:
        return run.run(prompts, advance)


def _result(contender: Contender, records: Sequence[PromptRecord], questions: Sequence[Question]) -> DecoderResult:
    return DecoderResult(
        contender.name,
        _figures(records, questions, contender.num_steps),
        wall_s=total_wall_s(records),
        settings=contender.settings,
        sweep=contender.sweep,
    )


def _figures(records: Sequence[PromptRecord], questions: Sequence[Question], num_steps: int) -> Figures:
    rows = []
    for record, question in zip(records, questions, strict=True):
        right = {f"precision/{n}": precision_at(record.texts, question.answers, n) for n in RANKS}
        rows.append(
            {
                **{name: float(value) for name, value in right.items()},
                "coverage": float(precision_at(record.texts, question.answers, len(record.drafts))),
                "num_drafts": float(len(record.drafts)),
                "mean_words": float(np.mean([len(text.split()) for text in record.texts])),
                "forward_rows": forward_rows(record, num_steps),
            }
        )
    return {name: as_ratios(np.array([row[name] for row in rows])) for name in rows[0]}


def _first_right(record: PromptRecord, question: Question) -> int | None:
    """Rank of the first draft that contains an answer, from 0; None if there is none."""
    ranks = (rank for rank, text in enumerate(record.texts) if contains_answer(text, question.answers))
    return next(ranks, None)


def _plot_curves(folder: Path, records: Mapping[str, Sequence[PromptRecord]], questions: Sequence[Question]) -> None:
    """Plot answers by number of drafts, and right answers by share of questions whose best draft is shown."""
    covered, trusted = {}, {}
    for name, of_decoder in records.items():
        pairs = list(zip(of_decoder, questions, strict=True))
        ranks = [_first_right(record, question) for record, question in pairs]
        most = max(len(record.drafts) for record in of_decoder)
        hits = np.array([most if rank is None else rank for rank in ranks])
        covered[name] = (np.arange(1, most + 1), [float(np.mean(hits < n)) for n in range(1, most + 1)])
        best = [(record.drafts[0].score, rank == 0) for record, rank in zip(of_decoder, ranks, strict=True)]
        _, coverage, accuracy = coverage_accuracy([score for score, _ in best], [right for _, right in best])
        trusted[name] = (coverage, accuracy)
    plots.curves(folder / "coverage_by_drafts.png", covered, "number of drafts", "questions answered")
    plots.curves(
        folder / "accuracy_by_coverage.png", trusted, "questions whose best draft is shown", "right drafts among them"
    )
