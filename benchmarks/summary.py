"""Medians, percentiles and ratios of what was timed, and how they are shown."""

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that `percent` of all do not exceed, between neighbours where it falls between two."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def spread(values: Sequence[float], digits: int = 2) -> dict[str, float]:
    """Median and quartiles."""
    return {
        "median": round(statistics.median(values), digits),
        "p25": round(percentile(values, 25), digits),
        "p75": round(percentile(values, 75), digits),
    }


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios of two contenders that took turns, round by round.

    Ratios within a round and not of medians: a machine whose speed drifts spoils both sides of a round alike.
    """
    return spread([above / below for above, below in zip(numerators, denominators, strict=True)], digits=3)


def shown(values: dict[str, float], digits: int = 2) -> tuple[str, str]:
    """A `spread` as two cells of a table: the median, and what the middle half of the values lies between."""
    return f"{values['median']:.{digits}f}", f"{values['p25']:.{digits}f} - {values['p75']:.{digits}f}"


def print_report(report: dict[str, Any], tables: Iterable[Table], as_json: bool, notes: Iterable[str] = ()) -> None:
    """JSON of all, or the tables and notes with machine and settings below them."""
    if as_json:
        print(json.dumps(report, indent=2))  # noqa: T201 (standard output is the product here)
        return
    console = Console()
    if not console.is_terminal:
        console.width = 130
    for table in tables:
        console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    console.print({"machine": report["machine"], "settings": report["settings"]})
