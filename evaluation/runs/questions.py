"""`superdraft lab eval qa`: how often drafts answer questions (the paper's table 2)."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from superdraft.decoding.loading.catalogue import DEFAULT_MODEL
from superdraft.evaluation import options
from superdraft.evaluation.cases.prompts import Prompt, Question, read_questions
from superdraft.evaluation.decoders.workbench import ModelChoice, Workbench
from superdraft.evaluation.measures.metrics import precision_at
from superdraft.evaluation.options import all_files, decoder_specs
from superdraft.evaluation.reports.figures import Figures, costs, means
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.reports.report import write_report
from superdraft.evaluation.runs.quality import measured

RANKS = (1, 2, 3)
COLUMNS = ("forward_rows", *(f"precision/{n}" for n in RANKS), "num_drafts")


def main(
    prompts: options.Files = None,
    more: options.MoreFiles = None,
    decoder: options.Decoders = options.SERVED,
    num_drafts: options.NumDrafts = 3,
    max_tokens: options.MaxTokens = 10,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    ngram: options.Ngram = "auto",
    model: options.Model = DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    output: options.Output = None,
) -> None:
    """Measure how often one of the first 1, 2 or 3 drafts answers a question (fields question and answers)."""
    specs = decoder_specs(decoder, ngram, {"num_drafts": num_drafts, "max_tokens": max_tokens})
    files, folder, console = all_files(prompts, more), output or Path("eval-qa"), Console()
    questions = {one.id: one for one in read_questions(files, limit)}
    asked = [Prompt(one.id, "questions", one.prompt, one.answers[0]) for one in questions.values()]
    workbench = Workbench(ModelChoice(model, dtype, device), [one.text for one in asked], specs, seed=seed)
    figures = partial(question_figures, questions)
    groups = {"questions": asked}
    results = measured(workbench.contenders(specs), groups, folder / "records", figures=figures)
    write_report(folder, "qa", results, COLUMNS, {"files": [file.name for file in files]}, console)


def question_figures(
    questions: Mapping[str, Question], records: Sequence[PromptRecord], _: Sequence[Prompt], num_steps: int
) -> Figures:
    """Costs and P@n of one decoder; the questions by their ids."""
    rows = []
    for record in records:
        answers = questions[record.prompt_id].answers
        right = {f"precision/{n}": float(precision_at(record.texts, answers, n)) for n in RANKS}
        rows.append({**costs(record, num_steps), **right})
    return means(rows)
