"""Statistics of timings, and the reports that benchmarks print."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from superdraft.evaluation.reports.machine import describe_machine

T = TypeVar("T")

_WIDTH = 150  # of tables that are not printed to a terminal


def percentile(values: Sequence[float], percent: int) -> float:
    """The given percentile, interpolated between neighbouring values."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def rounded_percentile(values: Sequence[float], percent: int) -> float | None:
    """The given percentile with one decimal; None for fewer than two values."""
    return round(percentile(values, percent), 1) if len(values) > 1 else None


def spread(values: Sequence[float], digits: int = 2) -> dict[str, float]:
    """Median and quartiles."""
    return {
        "median": round(statistics.median(values), digits),
        "p25": round(percentile(values, 25), digits),
        "p75": round(percentile(values, 75), digits),
    }


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios of two contenders that took turns, round by round.

    Ratios within a round rather than of medians: when a machine's speed drifts, both sides of a round are affected.
    """
    return spread([above / below for above, below in zip(numerators, denominators, strict=True)], digits=3)


def shown(values: Mapping[str, float], digits: int = 2) -> tuple[str, str]:
    """A `spread` as two cells of a table: the median, and the quartiles."""
    return f"{values['median']:.{digits}f}", f"{values['p25']:.{digits}f} - {values['p75']:.{digits}f}"


def tracked(values: Iterable[T], what: str, *, total: int | None = None, transient: bool = False) -> Iterable[T]:
    """The values, with a progress bar on standard error; a transient one is removed at the end."""
    return track(values, what, total, console=Console(stderr=True), transient=transient)


def make_report(doc: str | None, settings: Mapping[str, Any], **content: Any) -> dict[str, Any]:
    """A report: what was measured, on which machine, and with which settings.

    Args:
        doc: the docstring of the benchmark's module; its first line is the title.
        settings: of the benchmark.
        content: the results.
    """
    title = (doc or "").partition("\n")[0]
    return {"title": title, "machine": describe_machine(), "settings": settings, **content}


def print_report(report: Mapping[str, Any], tables: Iterable[Table], as_json: bool, notes: Iterable[str] = ()) -> None:
    """Print the report as JSON, or its tables and notes with the machine and the settings below them."""
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 (standard output is the product here)
        return
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    for table in tables:
        console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    console.print({"machine": report["machine"], "settings": report["settings"]})


def plain_table(rows: Sequence[Mapping[str, Any]], title: str | None = None, heads: Sequence[str] = ()) -> Table:
    """A table with a column for each field of the rows, called `heads` or else by the fields' names."""
    table = Table(*(heads or [name.replace("_", " ") for name in rows[0]]), title=title)
    for row in rows:
        table.add_row(*map(str, row.values()))
    return table


def count_text(counts: Mapping[str, int]) -> str:
    """Counts in one line: `200: 12, 503: 1`."""
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def print_promises(report: Mapping[str, Any], tables: Iterable[Table], as_json: bool) -> None:
    """Print a report with a note on each promise: whether it was kept, according to the report's `kept`.

    Raises:
        typer.Exit: with code 1, if a promise was broken.
    """
    kept = report["kept"]
    notes = [f"{'kept ' if is_kept else 'BROKEN'}  {promise}" for promise, is_kept in kept.items()]
    print_report(report, tables, as_json, notes)
    if not all(kept.values()):
        raise typer.Exit(1)
