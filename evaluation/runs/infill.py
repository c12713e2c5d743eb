"""`superdraft lab eval infill`: drafts for gaps in source code, as running servers answer `/infill`."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from superdraft.evaluation import options
from superdraft.evaluation.cases.infill_cases import chosen_cases, parse_window, write_cases
from superdraft.evaluation.cases.prompts import Prompt
from superdraft.evaluation.decoders.infill_requests import infill_contender
from superdraft.evaluation.decoders.peers import LLAMA_CPP, SUPERDRAFT, parse_peer
from superdraft.evaluation.measures import infill_metrics as metrics
from superdraft.evaluation.reports.figures import Figures, costs, means, shares
from superdraft.evaluation.reports.records import PromptRecord
from superdraft.evaluation.reports.report import write_report
from superdraft.evaluation.runs.quality import measured
from superdraft.server.cli.api_key import ApiKey, ApiKeyFile, read_key
from superdraft.server.errors import CommandError

COLUMNS = (
    "forward_rows",
    "request_ms",
    "exact_line/first",
    "exact_line/any",
    "first_word/first",
    "first_word/any",
    "first_character/first",
    "first_character/any",
    "keystroke_savings",
    "num_drafts",
)
_CHECKS = {
    "exact_line": metrics.is_exact_line,
    "first_word": metrics.is_first_word_right,
    "first_character": metrics.is_first_character_right,
}

Cases = Annotated[
    Path | None,
    typer.Option("--cases", help="JSON lines with prefix, suffix and reference (the rest of the line)."),
]
FromSource = Annotated[Path | None, typer.Option(help="Folder of source code to make cases from, instead of --cases.")]
Kind = Annotated[
    str,
    typer.Option(
        help="Cases to make from source code: indent (a new line), mid (inside a line) or word (inside a word)."
    ),
]
CaseLimit = Annotated[
    int | None, typer.Option(min=1, help="Maximum number of cases. If not set, all; 100 from source code.")
]
ContextLines = Annotated[
    str | None,
    typer.Option(
        help="BEFORE,AFTER: numbers of lines to keep around the cursor's line, such as 50,20. If not set, all lines."
    ),
]


def main(
    cases: Cases = None,
    from_source: FromSource = None,
    kind: Kind = "indent",
    peer: options.Peers = None,
    num_drafts: options.NumDrafts = 3,
    max_tokens: options.MaxTokens = 16,
    limit: CaseLimit = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of cases from source code.")] = 0,
    context_lines: ContextLines = None,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    output: options.Output = None,
) -> None:
    """Let running servers fill gaps in source code: whole lines, first words, first characters, keystrokes saved."""
    window, peers = parse_window(context_lines), [parse_peer(text, (SUPERDRAFT, LLAMA_CPP)) for text in peer or ()]
    if not peers:
        raise CommandError("--peer KIND=URL is missing: superdraft=URL or llamacpp=URL of a running server.")
    key, folder, console = read_key(api_key, api_key_file), output or Path("eval-infill"), Console()
    chosen = chosen_cases(cases, from_source, kind, limit, seed, window)
    with ExitStack() as stack:
        contenders = [stack.enter_context(infill_contender(one, key, num_drafts, max_tokens)) for one in peers]
        groups = {"gaps": chosen}
        results = measured(contenders, groups, folder / "records", figures=infill_figures)
    about = {"cases": {"kind": kind, "seed": seed} if cases is None else cases.name, "context_lines": window}
    write_cases(folder / "cases.jsonl", chosen)
    write_report(folder, "infill", results, COLUMNS, about, console)


def infill_figures(records: Sequence[PromptRecord], cases: Sequence[Prompt], num_steps: int) -> Figures:
    """All figures of one decoder, one row per case.

    Args:
        records: the records.
        cases: their cases, in the same order.
        num_steps: decode steps of a draft that is not cut short.
    """
    rows, saved = [], []
    for case, record in zip(cases, records, strict=True):
        row = costs(record, num_steps)
        for name, is_right in _CHECKS.items():
            right = [is_right(text, case.reference) for text in record.texts]
            row |= {f"{name}/first": float(any(right[:1])), f"{name}/any": float(any(right))}
        rows.append(row)
        saved.append((metrics.keys_saved(record.texts, case.reference), len(case.reference)))
    return {**means(rows), "keystroke_savings": shares(saved)}
