"""Questions: P@n, coverage, and how far a draft's score can be trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from superdraft.benchmarks.machine import describe_machine
from superdraft.evaluation.cases.prompts import Prompt, Question, read_questions
from superdraft.evaluation.decoders.decoder_spec import DecoderSpec
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.measures.bootstrap import as_ratios
from superdraft.evaluation.measures.metrics import contains_answer, coverage_accuracy, precision_at
from superdraft.evaluation.reports import plots
from superdraft.evaluation.reports.figures import Figures, forward_rows, intervals
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.reports.report import DecoderResult, markdown, results_document, summary_table, write_json
from superdraft.evaluation.runs.commands import check_names, progress_of
from superdraft.evaluation.runs.quality import QualityRun, Typing
from superdraft.server.errors import CommandError

RANKS = (1, 2, 3)
COLUMNS = {
    "qa": ("forward_rows", "precision/1", "precision/2", "precision/3", "num_drafts"),
    "coverage": ("forward_rows", "precision/1", "coverage", "num_drafts"),
}


@dataclass(frozen=True, slots=True)
class QuestionJob:
    """A command on questions.

    Attributes:
        command: one of `COLUMNS`.
        files: of questions.
        limit: at most so many.
        models: the language models.
        decoders: what is compared, the baseline first.
        seed: of the sampling decoders.
        output: folder of the results.
    """

    command: str
    files: tuple[Path, ...]
    limit: int | None
    models: ModelChoice
    decoders: tuple[DecoderSpec, ...]
    seed: int
    output: Path


def run_question_job(job: QuestionJob, console: Console) -> None:
    """Answer the questions by each decoder and write results.json, the table and the plots.

    Raises:
        CommandError: a file or an option is wrong.
    """
    check_names([spec.name for spec in job.decoders])
    questions = read_questions(job.files, job.limit)
    if not questions:
        raise CommandError("The files hold no questions.")
    prompts = [Prompt(one.id, "questions", one.prompt, one.answers[0]) for one in questions]
    workbench = Workbench(job.models, [prompt.text for prompt in prompts], job.decoders, seed=job.seed)
    run = QualityRun(workbench.contenders(job.decoders), job.output / "records", typing=Typing(keys=False))
    with progress_of([spec.name for spec in job.decoders], len(prompts), console) as advance:
        records = run.run(prompts, advance)
    results = [
        DecoderResult(
            spec.name,
            _figures(records[spec.name], questions, workbench.params(spec).max_tokens - 1),
            wall_s=round(sum(record.wall_s for record in records[spec.name]), 3),
            settings=workbench.settings(spec),
            sweep=spec.sweep,
        )
        for spec in job.decoders
    ]
    about = {"files": [file.name for file in job.files], "machine": describe_machine()}
    write_json(job.output / "results.json", results_document(job.command, results, about))
    table = markdown(f"{job.command.capitalize()} of {workbench.loaded.name}", results, COLUMNS[job.command])
    (job.output / "results.md").write_text(table, encoding="utf-8")
    _plot(job, results, records, questions)
    console.print(summary_table(results, COLUMNS[job.command]))


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
    """Rank, from 0, of the first draft that contains an answer."""
    ranks = (rank for rank, text in enumerate(record.texts) if contains_answer(text, question.answers))
    return next(ranks, None)


def _plot(
    job: QuestionJob,
    results: Sequence[DecoderResult],
    records: Mapping[str, Sequence[PromptRecord]],
    questions: Sequence[Question],
) -> None:
    found = {result.name: intervals(result.figures) for result in results}
    plots.bars(job.output / f"{job.command}.png", found, COLUMNS[job.command])
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
    plots.curves(job.output / "coverage_by_drafts.png", covered, "first drafts looked at", "questions with an answer")
    plots.curves(
        job.output / "accuracy_by_coverage.png", trusted, "questions whose best draft is shown", "right among them"
    )
