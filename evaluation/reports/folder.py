"""The folder of a report: results.json, results.md and a bar chart; the figures also go to the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from superdraft.evaluation.reports import plots
from superdraft.evaluation.reports.figures import intervals
from superdraft.evaluation.reports.machine import describe_machine
from superdraft.evaluation.reports.report import DecoderResult, markdown, results_document, summary_table, write_json


def write_report(
    folder: Path,
    command: str,
    title: str,
    results: Sequence[DecoderResult],
    columns: Sequence[str],
    about: Mapping[str, Any],
    console: Console,
) -> None:
    """Write the files of a report, and print its figures.

    Args:
        folder: the folder, which exists.
        command: name of the command.
        title: heading of the tables.
        results: the decoders; the first is the baseline of differences.
        columns: figures in the tables and the chart; results.json has all figures.
        about: files and options.
        console: the terminal.
    """
    document = results_document(command, results, {**about, "machine": describe_machine()})
    write_json(folder / "results.json", document)
    (folder / "results.md").write_text(markdown(title, results, columns), encoding="utf-8")
    plots.bars(folder / f"{command}.png", {one.name: intervals(one.figures) for one in results}, columns)
    console.print(summary_table(results, columns))
