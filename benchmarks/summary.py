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

Row = Mapping[str, Any]

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


def tracked(values: Iterable[T], what: str, *, total: int | None = None, transient: bool = False) -> Iterable[T]:
    """The values, with a progress bar on standard error; a transient one is removed at the end."""
    return track(values, what, total, console=Console(stderr=True), transient=transient)


def report(
    doc: str | None,
    settings: Mapping[str, Any],
    as_json: bool,
    *,
    kept: Mapping[str, bool] | None = None,
    **content: Sequence[Row] | Row,
) -> None:
    """Print what was measured, on which machine, and with which settings: as JSON or as tables.

    Args:
        doc: the docstring of the benchmark's module; its first line is the title.
        settings: of the benchmark.
        as_json: print JSON.
        kept: the server's promises, and whether it kept each.
        content: the tables by name, each a list of rows or one row.

    Raises:
        typer.Exit: with code 1, if a promise was broken.
    """
    machine, promises = describe_machine(), {} if kept is None else {"kept": kept}
    if as_json:
        title = (doc or "").partition("\n")[0]
        document = {"title": title, "machine": machine, "settings": settings, **content, **promises}
        print(json.dumps(document, indent=2))  # noqa: T201 (standard output is the product here)
    else:
        console = Console()
        if not console.is_terminal:
            console.width = _WIDTH
        for name, rows in content.items():
            console.print(_table([rows] if isinstance(rows, Mapping) else rows, name if len(content) > 1 else None))
        for promise, is_kept in (kept or {}).items():
            console.print(f"{'kept ' if is_kept else 'BROKEN'}  {promise}", markup=False, highlight=False)
        console.print({"machine": machine, "settings": settings})
    if not all((kept or {}).values()):
        raise typer.Exit(1)


def _table(rows: Sequence[Row], title: str | None) -> Table:
    """A table with a column for each field of the rows."""
    table = Table(*(name.replace("_", " ") for name in rows[0]), title=title)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def _cell(value: Any) -> str:
    """Counts as `200: 12, 503: 1`, a value with its bounds as `0.5 [0.4, 0.6]`; nothing for None."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {count}" for name, count in value.items())
    if isinstance(value, list):
        return f"{value[0]} {value[1:]}"
    return "" if value is None else str(value)
